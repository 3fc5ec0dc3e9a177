"""The stages of distillation in order, within a time. Called by calibrate.py and __main__.py.

The model's own text (on a GPU); stand-ins by themselves; gates; then the joint stage: the stand-ins learn from the KL
divergence to the dense model, while the gates skip at rates that hold, each window at its own. Twice in that stage, and
once after it, the gates learn again what their stand-ins do now. (Gates that learn all along, by a straight-through
gradient, were tried and made things worse: docs/calibration.md.)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import PyskipError
from ..neurons import default_width

try:
    import torch
    import transformers as transformers  # dense.py
except ImportError as error:
    raise PyskipError(f"{error.name} is not installed, --distill needs it: pip install 'pyskip[distill]'") from error

from . import gates, local
from .adam import Adam
from .dense import Dense, Inner
from .hold import hold_thresholds
from .loss import Seen, compare, divergence_gradient
from .plan import (
    JOINT_END,
    LR,
    MAX_LR,
    MEASURED,
    N_MEASURED,
    ODDS,
    QUANTISE_FROM,
    RATES,
    REFITS,
    SHARES,
    Plan,
)  # fmt: skip
from .sample import sample
from .stand_ins import StandIns, is_whole, pack_q4_0
from .state import State, load_state, model_digest, save_state, to_float
from .text import Draws, Text

__all__ = ["Plan", "Trainer", "train"]

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what to show


class Trainer:
    """Holds the dense model and the stand-ins; train() runs the stages in order."""

    def __init__(self, dense: Dense, draws: Draws, plan: Plan, progress: Progress) -> None:
        self.dense, self.draws, self.plan, self.progress = dense, draws, plan, progress
        width = plan.width or default_width(dense.n_ff)
        if width % 32 or not 0 < width < dense.n_ff:
            raise PyskipError(f"{dense.path}: found a width of {width}, expected a multiple of 32 below {dense.n_ff}")
        self.own = StandIns(dense.n_layer, dense.n_embd, width, dense.activation, is_normed=dense.has_post_norm)
        self.own.to(dense.device)
        self.rng = torch.Generator().manual_seed(plan.seed)
        self.device_rng = torch.Generator(dense.device).manual_seed(plan.seed)
        self.thresholds = dict.fromkeys(RATES, 0.0)
        self.shifts = dict.fromkeys(RATES, 0.0)
        self.scale = dict.fromkeys(RATES, 0.0)
        self.batch, self.step, self.share = plan.batch, 0, 0.0
        self.begin = time.monotonic()
        self.spent_before, self.is_finished = 0.0, False
        chosen = [draws.held_out[i] for i in np.random.default_rng(1).permutation(len(draws.held_out))[:N_MEASURED]]
        self.held_out = torch.from_numpy(np.stack(chosen).astype(np.int64))
        self.n_measured, self.has_measured = len(chosen), False

    # Time

    @property
    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.begin

    def _limit(self, share: float) -> Callable[[], bool]:
        """Whether a share of the time is over from now on."""
        end = self.spent + share * self.plan.seconds
        return lambda: self.spent > end

    @property
    def counted(self) -> float:
        """Of what it was given: all of it, once it is finished."""
        return max(self.spent, self.plan.seconds) if self.is_finished else self.spent

    # Thresholds as a held rate gives them

    def held(self, scores: torch.Tensor, rates: list[float]) -> torch.Tensor:
        """[n, n_window] from the dense pass's scores [n, n_window, n_layer]."""
        wanted, start = (
            torch.tensor(values, device=scores.device, dtype=torch.float32)
            for values in (rates, [self.thresholds[rate] for rate in rates])
        )
        shift = torch.tensor([self.shifts[rate] for rate in rates], device=scores.device)
        return hold_thresholds(scores, wanted, start, self.plan.warmup) + shift[:, None]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def dense_pass(self, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream, and the scores of all layers [n, n_window, n_layer]."""
        scores: list[torch.Tensor] = []

        def look(il: int, x: torch.Tensor, xn: torch.Tensor, block: Inner) -> torch.Tensor:
            scores.append(self.own.score(il, x, xn))
            return block(xn)

        return self.dense.stream(window, look), torch.stack(scores, -1)

    def skipping_pass(self, window: torch.Tensor, thresholds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream, and what was skipped [n, n_window, n_layer]. Each row is computed one way alone."""
        seen, decided = self.own.seen(), dict[int, torch.Tensor]()

        def block(il: int, x: torch.Tensor, xn: torch.Tensor, dense: Inner) -> torch.Tensor:
            skip = self.own.score(il, x, xn) < thresholds
            decided[il] = skip
            rows = xn.flatten(0, 1)
            run, skipped = (~skip).flatten().nonzero()[:, 0], skip.flatten().nonzero()[:, 0]
            y = torch.cat([dense(rows[run]), self.own.output(seen[il], rows[skipped])])
            place = torch.empty_like(torch.cat([run, skipped]))
            place[torch.cat([run, skipped])] = torch.arange(len(place), device=place.device)
            return y[place].reshape(xn.shape)

        stream = self.dense.stream(window, block)
        return stream, torch.stack([decided[il] for il in range(self.dense.n_layer)], -1)

    # Stages

    def _free(self) -> None:
        """For others on the same GPU; and a stage's memory is of other sizes than the next one's."""
        if self.dense.device.type == "cuda":
            torch.cuda.empty_cache()

    def fit_local(self) -> None:
        plan, is_late = self.plan, self._limit(SHARES["local"])
        self.progress("local", 0, 2, "")
        kept = local.gather(self.dense, self.draws, plan.n_local, min(plan.batch, 16), plan.warmup, is_late)
        local.start_stand_ins(self.dense, self.own, kept)
        loss = local.fit_stand_ins(
            self.dense, self.own, kept, plan.n_local_steps, min(plan.local_rows, kept.n), self.rng,
            self._limit(SHARES["local"]),
        )  # fmt: skip
        local.fit_first_gates(self.dense, self.own, kept)
        kept_words = f"{kept.n} tokens, missed {loss:.3f}"
        del kept
        self._free()
        self.progress("local", 2, 2, kept_words)

    def fit_gates(self, *, skipping: bool) -> None:
        is_late = self._limit(SHARES["gates"])
        harm, n = gates.Harm(self.dense.n_layer), max(1, self.batch // 4)
        for done in range(0, self.plan.n_gates, n):
            if done and is_late():
                break
            window = torch.from_numpy(self.draws.draw(n))
            thresholds = None
            if skipping:
                _, scores = self.dense_pass(window)
                thresholds = self.held(scores, [MEASURED[(done + i) % len(MEASURED)] for i in range(n)])
            gates.observe(self.dense, self.own, window, thresholds, self.plan.warmup, self.device_rng, harm)
            self.progress("gates", done + n, self.plan.n_gates, "")
        scores = torch.cat([gates.fit_gate(self.own, il, harm) for il in range(self.dense.n_layer)]).cpu().numpy()
        self.progress("gates", 1, 1, f"{harm.n} tokens")
        del harm
        self._free()
        for rate in RATES:
            self.thresholds[rate] = float(np.quantile(scores, rate))
        self.shifts = dict.fromkeys(RATES, 0.0)
        if skipping:
            self.find_shifts()

    def find_shifts(self) -> None:
        """A few passes, so that the rates are right from the first step on."""
        for i in range(4):
            window = torch.from_numpy(self.draws.draw(max(len(RATES) if self.batch > 1 else 1, self.batch // 2)))
            rates = [RATES[(i + j) % len(RATES)] for j in range(len(window))]
            with torch.no_grad():
                _, scores = self.dense_pass(window)
                _, skipped = self.skipping_pass(window, self.held(scores, rates))
            self._follow(rates, skipped, 0.7)

    def _follow(self, rates: list[float], skipped: torch.Tensor, gain: float) -> float:
        actual = skipped[:, self.plan.warmup :].float().mean((1, 2)).tolist()
        for rate in set(rates):
            mean = float(np.mean([a for a, r in zip(actual, rates, strict=True) if r == rate]))
            self.shifts[rate] += gain * (rate - mean)
        return float(np.mean(actual))

    def train_jointly(self, save: Callable[[], None]) -> None:
        """The learning rate, a cosine after a short rise, follows the clock, as all else here."""
        first, begin = self.share, self.spent
        end = JOINT_END * self.plan.seconds
        lr = min(MAX_LR, LR * math.sqrt(self.batch))
        adam = Adam(self.own, lr, betas=(0.9, 0.98))
        refits = [r for r in REFITS if r > first]
        saved = shown = time.monotonic()
        while self.spent < end:
            self.share = first + (1 - first) * (self.spent - begin) / (end - begin)
            if refits and self.share >= refits[0]:
                self.fit_gates(skipping=True)
                refits.pop(0)
                continue
            self.own.is_quantised = self.share >= QUANTISE_FROM
            rise = min(1.0, (self.step + 1) / 30)
            adam.lr = lr * rise * 0.5 * (1 + math.cos(math.pi * self.share))
            words = self._step(adam)
            self.step += 1
            if time.monotonic() - shown > 1:
                shown = time.monotonic()
                self.progress("train", int(self.spent), int(self.plan.seconds), f"step {self.step}, {words}")
            if time.monotonic() - saved > self.plan.save_every:
                save()
                saved = time.monotonic()
        self.share, self.own.is_quantised = 1.0, True

    def _step(self, adam: Adam) -> str:
        try:
            return self._learn(adam)
        except torch.cuda.OutOfMemoryError:
            if self.batch == 1:
                raise PyskipError(
                    f"{self.dense.path}: one window is too much for the GPU's memory: --recompute"
                ) from None
            adam.zero_grad()
            torch.cuda.empty_cache()
            self.batch = max(1, self.batch // 2)
            return f"out of memory: {self.batch} windows a step from now on"

    def _learn(self, adam: Adam) -> str:
        """One step. Returns words for people."""
        warmup, window = self.plan.warmup, torch.from_numpy(self.draws.draw(self.batch))
        drawn = torch.multinomial(torch.tensor(ODDS), self.batch, replacement=True, generator=self.rng)
        rates = [RATES[i] for i in drawn.tolist()]
        target, scores = self.dense_pass(window)
        self.dense.recompute(self.plan.recompute)
        student, skipped = self.skipping_pass(window, self.held(scores, rates))
        weight = torch.tensor([1 / math.sqrt(self.scale[r]) if self.scale[r] else 1.0 for r in rates])
        n = window.shape[1] - warmup
        weight = (weight / (n * len(rates))).to(student.device).repeat_interleave(n)
        rows = student[:, warmup:].flatten(0, 1)
        kl, gradient = divergence_gradient(self.dense, target[:, warmup:].flatten(0, 1), rows, weight)
        adam.zero_grad()
        rows.backward(gradient)
        self.dense.recompute(False)
        torch.nn.utils.clip_grad_norm_(self.own.weights(), 1.0)
        adam.step()
        values = kl.reshape(len(rates), -1).mean(1).tolist()
        for rate, value in zip(rates, values, strict=True):
            old = self.scale[rate]
            keep = 0.9 if self.batch == 1 else 0.97
            self.scale[rate] = keep * old + (1 - keep) * value if old else value
        gain = 0.2 + 0.8 * math.exp(-self.step / 30)
        actual = self._follow(rates, skipped, gain if self.batch == 1 else 0.2 * gain)
        means = " ".join(f"{100 * r:.0f}%: {self.scale[r]:.4f}" for r in RATES)
        return f"KL {np.mean(values):.4f} at {actual:.3f}, mean by rate {means}"

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def measure(self) -> float:
        """On windows that were held out, at rates that hold: shows perplexity / dense; returns the mean log of the KL
        divergences. As many windows as the first time took a share of the time for."""
        is_late, warmup = self._limit(SHARES["measure"]), self.plan.warmup
        step = max(1, self.batch // 2)
        seen = {rate: Seen() for rate in MEASURED}
        for begin in range(0, self.n_measured, step):
            window = self.held_out[begin : begin + step]
            target, scores = self.dense_pass(window)
            labels = window[:, warmup + 1 :].flatten().to(target.device)
            for rate in MEASURED:
                student, skipped = self.skipping_pass(window, self.held(scores, [rate] * len(window)))
                rows, rows_target = (stream[:, warmup:-1].flatten(0, 1) for stream in (student, target))
                divergences, losses = compare(self.dense, rows_target, rows, labels)
                seen[rate].add(divergences, losses, skipped[:, warmup:])
            if not self.has_measured and is_late():
                self.n_measured = begin + len(window)
                break
        self.has_measured = True
        words = "; ".join(f"{rate:.2f} {seen[rate]}" for rate in MEASURED)
        self.progress("measure", self.n_measured, self.n_measured, words)
        return sum(math.log(max(each.kl, 1e-9)) for each in seen.values()) / len(seen)

    def finish(self) -> None:
        """The gates once more, if that is for the better."""
        before, kept = self.measure(), (self.own.gate.detach().clone(), dict(self.thresholds), dict(self.shifts))
        self.fit_gates(skipping=True)
        if self.measure() > before:
            self.own.gate.data, self.thresholds, self.shifts = kept
            self.progress("measure", 1, 1, "the gates before the last fit are better, and kept")

    # State

    def state(self, model: str, text: Text) -> State:
        own = self.own

        def pack(w: torch.Tensor) -> torch.Tensor:
            return pack_q4_0(w) if own.is_quantised and is_whole(w) else w.detach().half()

        return State(
            model=model, activation=self.dense.activation, hidden_norm=own.is_normed, width=own.width,
            warmup=self.plan.warmup, seconds=self.counted, share=self.share, n_tokens=text.n_tokens,
            source=text.source, sha256=text.sha256,
            gate=own.gate.detach().cpu().numpy(), bias=own.bias.detach().cpu().numpy(),
            gate_up=pack(own.gate_up).cpu().numpy(), down=pack(own.down).cpu().numpy(), rates=np.array(RATES),
            thresholds=np.array([self.thresholds[r] for r in RATES]), shifts=np.array([self.shifts[r] for r in RATES]),
        )  # fmt: skip

    def resume(self, state: State) -> None:
        for parameter, value in (
            (self.own.gate_up, to_float(state.gate_up)), (self.own.down, to_float(state.down)),
            (self.own.bias, state.bias), (self.own.gate, state.gate),
        ):  # fmt: skip
            parameter.data = torch.from_numpy(np.array(value, np.float32)).to(self.dense.device)
        for i, rate in enumerate(state.rates.tolist()):
            if rate in self.thresholds:
                self.thresholds[rate], self.shifts[rate] = float(state.thresholds[i]), float(state.shifts[i])
        self.spent_before = state.seconds
        self.share = state.share if state.share < 1 else 0.5  # more time than it had: half the way again


def train(
    path: str | os.PathLike[str], text: Text, plan: Plan, progress: Progress, state_path: Path | None = None
) -> State:
    """What is learnt within plan.seconds, in all. state_path: written meanwhile, and gone on from if it is there.

    Raises PyskipError for a model that this cannot train, and for too little text.
    """
    begin = time.monotonic()
    before = load_state(state_path, path) if state_path and state_path.exists() else None
    if before and before.is_finished(plan.seconds):
        return before
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense, model = Dense(path, device), model_digest(path)
    progress("load", 1, 1, f"{time.monotonic() - begin:.0f} s")
    kinds = dict(text.kinds)
    if plan.n_own:
        kinds |= sample(
            dense, text.starts, plan.n_window, plan.n_own, SHARES["own text"] * plan.seconds, plan.seed,
            lambda done, total: progress("own text", done, total, ""),
        )  # fmt: skip
    text = Text(kinds, text.source, text.sha256, text.starts)
    dense.to_device()
    trainer = Trainer(dense, Draws(text, plan.n_window, plan.seed + (1 if before else 0)), plan, progress)
    trainer.begin = begin
    progress("text", 1, 1, f"{text.n_tokens} tokens of {len(kinds)} kinds, {trainer.spent:.0f} s")

    def save() -> None:
        if state_path:
            save_state(state_path, trainer.state(model, text))

    if before:
        trainer.resume(before)
    else:
        trainer.fit_local()
        trainer.fit_gates(skipping=False)
        trainer.find_shifts()
        save()
        trainer.measure()
    trainer.train_jointly(save)
    save()
    trainer.finish()
    trainer.is_finished = True
    save()
    return trainer.state(model, text)
