"""End-to-end distillation: stand-ins and gates learn from the dense model's logits, with the gate in the loop.

Needs the extra `pyskip[distill]`, and a model that transformers can load from GGUF and whose layers are LLaMA's
(mlp.gate_proj, up_proj, down_proj behind post_attention_layernorm). Uses a GPU if torch finds one. Called by
calibrate.py. Three stages:

1. local: each layer's stand-in, a gated FFN of `width` neurons that starts as the block's own strongest ones, learns
   the block's output from its input on the dense stream;
2. gates: each starts as the closed-form prediction of log(|y - stand-in|), and learns to predict the harm itself:
   what the stand-in would add to the KL divergence, from the Fisher information of sampled labels;
3. joint: the stand-ins learn from the KL divergence to the dense logits, while the gates skip at several rates in turn.
   In the last part the stand-ins are seen through their quantisation. (Gates that learn too, by a straight-through
   gradient, were tried and made things worse: docs/calibration.md.)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PyskipError
from .neurons import default_width
from .write import LayerFit

try:
    import torch
    import transformers
except ImportError as error:
    raise PyskipError(f"{error.name} is not installed, --distill needs it: pip install 'pyskip[distill]'") from error

__all__ = ["Distiller", "distill"]

WINDOW = 512
GATE_PRIOR = 0.3  # strength of what a gate's weights, per standard deviation of their input, are drawn back with
RATES = (0.10, 0.18, 0.25, 0.33, 0.40, 0.48)
RATE_ODDS = (0.15, 0.15, 0.25, 0.15, 0.20, 0.10)

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what to show


def fake_q4_0(w: torch.Tensor) -> torch.Tensor:
    """w as GGML_TYPE_Q4_0 would hold it (quantize_row_q4_0_ref), its gradient passed through."""
    blocks = w.detach().reshape(-1, 32)
    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    d = peak / -8
    inverse = torch.where(d == 0, torch.zeros_like(d), 1 / d)
    q = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return w + ((q * d.half().float()).reshape(w.shape) - w).detach()


class StandIn(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, and Any if it is missing
    """One layer's stand-in and gate."""

    def __init__(self, n_embd: int, width: int) -> None:
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.zeros(2 * width, n_embd))
        self.down = torch.nn.Parameter(torch.zeros(n_embd, width))
        self.bias = torch.nn.Parameter(torch.zeros(n_embd))
        self.gate = torch.nn.Parameter(torch.zeros(n_embd))
        self.gate_log = torch.nn.Parameter(torch.zeros(()))
        self.gate_bias = torch.nn.Parameter(torch.zeros(()))
        self.is_quantised = False

    def output(self, xn: torch.Tensor) -> torch.Tensor:
        seen = fake_q4_0 if self.is_quantised else (lambda w: w)
        g, u = (xn @ seen(self.gate_up).T).chunk(2, dim=-1)
        return torch.nn.functional.silu(g) * u @ seen(self.down).T + self.bias

    def score(self, x: torch.Tensor, xn: torch.Tensor) -> torch.Tensor:
        return xn @ self.gate + self.gate_log * x.norm(dim=-1).clamp_min(1e-20).log() + self.gate_bias


def fit_log_mean(f: torch.Tensor, h: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """w with mean(h) ~ exp(f @ w): the regression for exponentially distributed h >= 0 (their deviance is convex in w),
    drawn towards `start` up to a constant, which is what is returned if nothing better is found. f: [n, k], the last
    column 1. h: [n]."""
    f, h, start = f.double(), h.double(), start.double()
    scale = f.std(0)
    scale[-1] = 1.0
    scale = scale.clamp_min(1e-3 * float(scale.median()))
    z = f / scale
    w = start * scale
    w[-1] += ((h * torch.exp(-(z @ w))).clamp(max=30).mean() + 1e-30).log()
    anchor, strength = w.clone(), torch.full_like(w, GATE_PRIOR)
    strength[-1] = 0.0
    w.requires_grad_(True)
    solver = torch.optim.LBFGS([w], max_iter=150, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        g = (z @ w).clamp(min=-60)  # a wild trial step of the line search must stay finite
        loss = (h * torch.exp(-g) + g).mean() + (strength * (w - anchor) ** 2).sum()
        loss.backward()
        return loss

    solver.step(closure)
    found = w.detach()
    return ((found if torch.isfinite(found).all() else anchor) / scale).float()


class Distiller:
    """Holds the dense model and the stand-ins; run the stages in order."""

    def __init__(
        self,
        model_path: str,
        windows: Sequence[npt.NDArray[np.int32]],
        *,
        width: int | None,
        seed: int,
        warmup: int,
        progress: Progress,
    ) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        folder, name = os.path.split(os.path.abspath(model_path))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=torch.float32
            ).to(self.device)
            layers = self.model.model.layers
            n_ff = layers[0].mlp.gate_proj.weight.shape[0]
        except (ValueError, AttributeError, KeyError, OSError) as error:
            raise PyskipError(
                f"{model_path}: --distill cannot train this model ({error}): leave --distill away"
            ) from error
        self.model.requires_grad_(False).eval()
        self.width = width or default_width(n_ff)
        self.warmup, self.progress = warmup, progress
        self.windows = torch.from_numpy(np.stack(windows).astype(np.int64))
        self.rng = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(len(self.windows), generator=self.rng)
        self.n_drawn = 0
        n_embd = self.model.config.hidden_size
        self.stand_ins = torch.nn.ModuleList(StandIn(n_embd, self.width) for _ in layers).to(self.device)
        self.thresholds = dict.fromkeys(RATES, 0.0)
        self.scale = dict.fromkeys(RATES, 0.0)
        self.step = 0
        self._block: Callable[[int, torch.Tensor, torch.Tensor, Any], torch.Tensor] | None = None
        self._x: dict[int, torch.Tensor] = {}
        for il, layer in enumerate(layers):
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args, il=il: self._x.__setitem__(il, args[0])
            )
            layer.mlp.forward = self._wrap(il, layer.mlp.forward)

    def _wrap(self, il: int, dense: Any) -> Any:
        def forward(xn: torch.Tensor) -> torch.Tensor:
            x = self._x.pop(il)
            return dense(xn) if self._block is None else self._block(il, x, xn, dense)

        return forward

    def logits(self, window: torch.Tensor, block: Any = None) -> torch.Tensor:
        """[n, WINDOW] -> [n, WINDOW, n_vocab]."""
        self._block = block
        return self.model(window.to(self.device), use_cache=False).logits

    def draw(self) -> torch.Tensor:
        window = self.windows[self.order[self.n_drawn % len(self.order)]]
        self.n_drawn += 1
        return window[None]

    # 1

    def fit_local(self, n_windows: int, n_steps: int) -> None:
        n_layer = len(self.stand_ins)
        kept: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in range(n_layer)]

        def keep(il: int, x: torch.Tensor, xn: torch.Tensor, dense: Any) -> torch.Tensor:
            y: torch.Tensor = dense(xn)
            kept[il].append(tuple(t[0, self.warmup :].clone() for t in (xn, y, x.norm(dim=-1))))
            return y

        with torch.no_grad():
            head, self.model.lm_head.forward = self.model.lm_head.forward, lambda h: h[..., :1]
            for i in range(n_windows):
                self.logits(self.draw(), keep)
                self.progress("gather", i + 1, n_windows, "")
            self.model.lm_head.forward = head
        for il in range(n_layer):
            xn, y, size = (torch.cat(t) for t in zip(*kept[il], strict=True))
            kept[il] = []
            n_held = len(xn) // 10
            loss = self._fit_layer(il, xn[n_held:], y[n_held:], n_steps)
            held = self._fit_gate(il, xn, y, size, n_held)
            self.progress(
                "local", il + 1, n_layer, f"layer {il}: loss {loss:.3f}, unseen {held[0]:.3f}, gate R2 {held[1]:.2f}"
            )

    def _fit_layer(self, il: int, xn: torch.Tensor, y: torch.Tensor, n_steps: int) -> float:
        mlp, own = self.model.model.layers[il].mlp, self.stand_ins[il]
        gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        hidden = torch.nn.functional.silu(xn[:4096] @ gate.T) * (xn[:4096] @ up.T)
        top = ((hidden**2).mean(0) * (down**2).sum(0)).topk(self.width).indices
        own.gate_up.data = torch.cat([gate[top], up[top]])
        own.down.data = down[:, top].clone()
        own.bias.data = (y - own.output(xn)).mean(0).detach()
        parameters = [own.gate_up, own.down, own.bias]
        adam = torch.optim.Adam(parameters, lr=1.5e-3)
        plan = torch.optim.lr_scheduler.OneCycleLR(adam, 1.5e-3, total_steps=n_steps, pct_start=0.1)
        energy, mean = (y * y).sum(1), 0.0
        weight = 1 / (energy + energy.mean())  # between relative and absolute error: a few huge rows must not rule
        for _ in range(n_steps):
            rows = torch.randint(0, len(xn), (768,), generator=self.rng)
            loss = (weight[rows] * ((own.output(xn[rows]) - y[rows]) ** 2).sum(1)).sum() / (
                weight[rows] * energy[rows]
            ).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            plan.step()
            mean = 0.95 * mean + 0.05 * loss.item()
        return mean

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _fit_gate(
        self, il: int, xn: torch.Tensor, y: torch.Tensor, size: torch.Tensor, n_held: int
    ) -> tuple[float, float]:
        own = self.stand_ins[il]
        miss = (y - own.output(xn)).norm(dim=1)
        error = miss.log()
        rows = torch.cat([xn, size.log()[:, None], torch.ones_like(size)[:, None]], 1)
        a = (rows[n_held:].T @ rows[n_held:]).double()
        a += 1e-4 * a.diagonal().mean() * torch.eye(len(a), dtype=torch.float64, device=a.device)
        g = torch.linalg.solve(a, (rows[n_held:].T @ error[n_held:, None]).double()).float()[:, 0]
        own.gate.data, own.gate_log.data, own.gate_bias.data = g[:-2].clone(), g[-2].clone(), g[-1].clone()
        held = slice(0, n_held)
        r2 = 1 - ((rows[held] @ g - error[held]) ** 2).mean() / error[held].var()
        return float((miss[held] ** 2).sum() / (y[held] ** 2).sum()), float(r2)

    # 2

    def fit_gates(self, n_windows: int) -> None:
        """Let each gate predict half the log of the harm that its stand-in would do, and set the first thresholds.

        To second order, a change of the stream by d = stand-in - y adds d' F d / 2 to the KL divergence of this and the
        later tokens, F being the Fisher information: the mean over labels that the model itself draws of the squared
        slope of their log-probability along d. One label a token gives a noisy, unbiased sample of it, for all layers
        in one backward pass.
        """
        rows: list[list[torch.Tensor]] = [[] for _ in self.stand_ins]
        harm: list[list[torch.Tensor]] = [[] for _ in self.stand_ins]
        for i in range(n_windows):
            slopes: list[torch.Tensor] = []

            def probe(il: int, x: torch.Tensor, xn: torch.Tensor, dense: Any, slopes: Any = slopes) -> torch.Tensor:
                y = dense(xn)
                with torch.no_grad():
                    change = self.stand_ins[il].output(xn) - y
                    size = x[0].norm(dim=-1, keepdim=True).clamp_min(1e-20).log()
                    rows[il].append(torch.cat([xn[0], size, torch.ones_like(size)], 1)[self.warmup :].cpu())
                slopes.append(torch.zeros(xn.shape[:2], device=xn.device, requires_grad=True))
                return y + slopes[-1][..., None] * change

            logp = self.logits(self.draw(), probe)[0].log_softmax(-1)
            label = torch.multinomial(logp.detach().exp().cpu(), 1, generator=self.rng).to(self.device)
            logp.gather(1, label)[self.warmup :].sum().backward()
            for il, slope in enumerate(slopes):
                harm[il].append((slope.grad[0, self.warmup :] ** 2).cpu())
            self.progress("gates again" if self.step else "gates", i + 1, n_windows, "")  # a stage's time is its own
        scores = []
        for il, own in enumerate(self.stand_ins):
            f = torch.cat(rows[il])
            rows[il] = []
            start = torch.cat([own.gate.data, own.gate_log.data[None], own.gate_bias.data[None]]).cpu()
            gate = fit_log_mean(f, torch.cat(harm[il]), 2 * start) / 2
            own.gate.data = gate[:-2].to(self.device)
            own.gate_log.data, own.gate_bias.data = gate[-2].to(self.device), gate[-1].to(self.device)
            scores.append((f @ gate).numpy())
        for rate in RATES:
            self.thresholds[rate] = float(np.quantile(np.concatenate(scores), rate))

    # 3

    def conditional(self, threshold: float, decided: list[torch.Tensor]) -> Any:
        """The block that the gates decide: rows that run, and rows that skip, each computed alone."""

        def block(il: int, x: torch.Tensor, xn: torch.Tensor, dense: Any) -> torch.Tensor:
            own = self.stand_ins[il]
            with torch.no_grad():
                skip = own.score(x, xn)[0] < threshold
                skip[: self.warmup] = False
            decided.append(skip[self.warmup :].float())
            run, skipped = (~skip).nonzero()[:, 0], skip.nonzero()[:, 0]
            rows = torch.cat([dense(xn[0, run]), own.output(xn[0, skipped])])
            order = torch.cat([run, skipped]).argsort()
            return rows[order][None]

        return block

    def train(self, seconds: float, *, quantise_from: float = 0.4, lr: float = 3e-4) -> None:
        """The joint stage: the stand-ins learn, the gates decide. The learning rate, a cosine after a short rise,
        follows the clock."""
        weights = [p for own in self.stand_ins for p in (own.gate_up, own.down, own.bias)]
        adam = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.98))
        start, first, spent = time.monotonic(), self.step, 0.0
        while spent < seconds:
            done = spent / seconds
            adam.param_groups[0]["lr"] = (
                lr * min(1.0, (self.step - first + 1) / 30) * 0.5 * (1 + math.cos(math.pi * done))
            )
            for own in self.stand_ins:
                own.is_quantised = done >= quantise_from
            rate = RATES[int(torch.multinomial(torch.tensor(RATE_ODDS), 1, generator=self.rng))]
            value, actual = self._learn(rate, adam, weights)
            self.thresholds[rate] += (0.2 + 0.8 * math.exp(-self.step / 30)) * (rate - actual)
            self.step += 1
            spent = time.monotonic() - start
            words = f"rate {rate:.2f} ({actual:.2f}), KL {value:.4f}, mean {self.scale[rate]:.4f}"
            self.progress("train", min(int(spent), int(seconds)), int(seconds), words)
        for own in self.stand_ins:
            own.is_quantised = True

    def _learn(
        self, rate: float, adam: torch.optim.Optimizer, weights: list[torch.nn.Parameter]
    ) -> tuple[float, float]:
        """One step on one window. Returns the KL divergence and the rate that the threshold gave."""
        window = self.draw()
        decided: list[torch.Tensor] = []
        with torch.no_grad():
            target = self.logits(window)[0, self.warmup :].log_softmax(-1)
        student = self.logits(window, self.conditional(self.thresholds[rate], decided))[0, self.warmup :]
        kl = (target.exp() * (target - student.log_softmax(-1))).sum(-1).mean()
        value = kl.item()
        old = self.scale[rate]
        self.scale[rate] = 0.9 * old + 0.1 * value if old else value
        adam.zero_grad()
        (kl / math.sqrt(self.scale[rate])).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        return value, float(torch.stack(decided).mean())

    def layers(self) -> list[LayerFit | None]:
        return [_layer_fit(own) for own in self.stand_ins]


def _layer_fit(own: Any) -> LayerFit:
    def array(*parts: torch.Tensor) -> npt.NDArray[np.float32]:
        joined = torch.cat([p.detach().cpu().float().reshape(p.shape or (1,)) for p in parts])
        return np.asarray(joined.numpy(), np.float32)

    return LayerFit(
        gate=array(own.gate, own.gate_log, own.gate_bias),
        bias=array(own.bias),
        matrices={"skip_gate_up": array(own.gate_up), "skip_down": array(own.down)},
    )


def distill(
    model_path: str,
    windows: Sequence[npt.NDArray[np.int32]],
    *,
    seconds: float,
    width: int | None,
    seed: int,
    warmup: int,
    progress: Progress,
) -> list[LayerFit | None]:
    """All three stages; `seconds` counts for the joint one. Windows of WINDOW tokens.

    width: neurons of a stand-in, a multiple of 32; by default about 1/7 of the block's, which in 4 bits is 1/8 of the
    bytes of a block in 5 bits. Raises PyskipError for a model that this cannot train.
    """
    distiller = Distiller(model_path, windows, width=width, seed=seed, warmup=warmup, progress=progress)
    distiller.fit_local(n_windows=min(36, len(windows)), n_steps=450)
    distiller.fit_gates(n_windows=min(24, len(windows)))
    distiller.train(seconds)
    distiller.fit_gates(n_windows=min(48, len(windows)))
    return distiller.layers()
