"""The model's own text, thousands of sequences side by side, one token of each in a step.

Native sampling (calibration/text.py) writes some hundred tokens a second on two cores; a GPU some ten thousand.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from .dense import Dense
from .text import Starts, Tokens

__all__ = ["sample"]

FLOOR = 0.003  # of the likeliest token's probability: rarer ones are not drawn
CACHE_BYTES = 24 << 30
LOGITS = 1 << 29  # of float32, drawn from at a time
ATTENTION = "pyskip_decode"
N_WARM, N_TRIED = 8, 32  # after so many steps, and so many more, it is known how long all of them take

Progress = Callable[[int, int], None]


class _Attention:
    """transformers' attention for one new token of each sequence. Keys and values of a group of heads are read once."""

    def __init__(self, n_window: int) -> None:
        self.n_window, self.pos = n_window, 0
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **given: Any) -> Any:
        n, n_kv, _, size = k.shape
        if module.layer_idx not in self.kept:
            self.kept[module.layer_idx] = (
                k.new_empty(n, n_kv, self.n_window, size),
                v.new_empty(n, n_kv, self.n_window, v.shape[-1]),
            )
        keys, values = self.kept[module.layer_idx]
        keys[:, :, self.pos], values[:, :, self.pos] = k[:, :, 0], v[:, :, 0]
        end, window = self.pos + 1, given.get("sliding_window")
        begin = max(0, end - window) if window else 0
        scores = q.reshape(n, n_kv, -1, size) @ keys[:, :, begin:end].transpose(2, 3)
        scores = scores * (given["scaling"] if given.get("scaling") is not None else size**-0.5)
        if given.get("softcap"):
            scores = torch.tanh(scores / given["softcap"]) * given["softcap"]
        out = scores.float().softmax(-1).to(v.dtype) @ values[:, :, begin:end]
        return out.reshape(n, 1, -1, out.shape[-1]), None


def _draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token of each row at temperature 1."""
    logits = logits.float()
    low = logits.amax(-1, keepdim=True) + float(np.log(FLOOR))
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    return (logits - noise).masked_fill_(logits < low, -torch.inf).argmax(-1)


def _n_sequences(model: Any, n_window: int, n_tokens: int) -> int:
    config = model.config
    n_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = config.num_hidden_layers * n_window * n_kv * size * 2 * model.dtype.itemsize
    return int(min(-(-n_tokens // n_window), max(1, CACHE_BYTES // each)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(
    dense: Dense, starts: Starts, n_window: int, n_tokens: int, seconds: float, seed: int, progress: Progress
) -> dict[str, list[Tokens]]:
    """Sequences of n_window tokens by kind, n_tokens in all, or as many as fit in the time; perhaps none.

    Every fourth begins with nothing, the others with a prompt; the next prompt as soon as one is answered. Works on a
    copy, before dense.to_device().
    """
    on_gpu = dense.device.type == "cuda"
    model = copy.deepcopy(dense.model).to(dense.device)
    if on_gpu:
        for weight in model.parameters():  # and not the rotary embedding's frequencies
            weight.data = weight.data.to(torch.bfloat16)
    n = _n_sequences(model, n_window, n_tokens)
    begin, made = time.monotonic(), list[np.ndarray[Any, Any]]()
    n_round = max(1, round(n_tokens / (n * n_window)))
    for i in range(n_round):
        left = seconds - (time.monotonic() - begin)
        if made and left < (time.monotonic() - begin) / len(made):
            break

        def show(pos: int, i: int = i) -> None:
            progress(i * n_window + pos, n_round * n_window)

        tokens = _round(model, starts, n, n_window, seed + i, left, show)
        if tokens is None:
            break
        made.append(tokens)
    del model
    if on_gpu:
        torch.cuda.empty_cache()
    plain = [t for tokens in made for t in tokens[::4]]
    asked = [t for tokens in made for s, t in enumerate(tokens) if s % 4]
    return {name: kind for name, kind in (("own", plain), ("own answers", asked)) if kind}


def _round(
    model: Any, starts: Starts, n: int, n_window: int, seed: int, seconds: float, progress: Callable[[int], None]
) -> np.ndarray[Any, Any] | None:
    """[n, n_window]; None if it would take longer."""
    attention = _Attention(n_window)
    transformers.AttentionInterface.register(ATTENTION, attention)
    model.set_attn_implementation(ATTENTION)
    try:
        return _steps(model, attention, starts, n, n_window, seed, seconds, progress)
    finally:
        attention.kept.clear()  # transformers keeps the function


def _steps(
    model: Any, attention: _Attention, starts: Starts, n: int, n_window: int, seed: int, seconds: float,
    progress: Callable[[int], None],
) -> np.ndarray[Any, Any] | None:  # fmt: skip
    device, begin = next(model.parameters()).device, time.monotonic()
    generator = torch.Generator(device).manual_seed(seed)
    given = _Given(starts, n, n_window, seed)
    ends = torch.tensor(starts.ends or (-1,), device=device)
    tokens = np.zeros((n, n_window), np.int32)
    tokens[:, 0] = given.at(0, tokens[:, 0])
    step = max(1, LOGITS // int(model.config.vocab_size))
    for pos in range(n_window - 1):
        attention.pos = pos
        now = torch.from_numpy(tokens[:, pos : pos + 1].astype(np.int64)).to(device)
        stream = model.model(now, position_ids=torch.full_like(now, pos), use_cache=False).last_hidden_state[:, 0]
        drawn = torch.cat([_draw(_logits(model, rows), generator) for rows in stream.split(step)])
        ended = torch.isin(drawn, ends).cpu().numpy()
        tokens[:, pos + 1] = given.at(pos + 1, drawn.cpu().numpy().astype(np.int32))
        for s in np.flatnonzero(ended & given.is_free(pos + 1)):
            given.start(int(s), pos + 2)
        if pos == N_WARM:
            begin = time.monotonic()
        if pos == N_WARM + N_TRIED and (time.monotonic() - begin) * n_window / N_TRIED > 2 * seconds:
            return None
        if pos % 32 == 0:
            progress(pos)
    return tokens


def _logits(model: Any, stream: torch.Tensor) -> torch.Tensor:
    logits = model.lm_head(stream).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if not cap else cap * torch.tanh(logits / cap)


class _Given:
    """Tokens that are not drawn: those of a sequence's start, and of the next where the model has said all."""

    def __init__(self, starts: Starts, n: int, n_window: int, seed: int) -> None:
        self._tokens = np.full((n, n_window), -1, np.int32)
        self._starts = starts
        self._order = np.random.default_rng(seed).permutation(len(starts.prompts))
        self._next = 0
        for s in range(n):
            self.start(s, 0)

    def start(self, s: int, pos: int) -> None:
        tokens = self._starts.empty or (0,)
        if s % 4 and len(self._order):
            tokens = self._starts.prompts[self._order[self._next % len(self._order)]]
            self._next += 1
        part = tokens[: max(0, self._tokens.shape[1] - pos)]
        self._tokens[s, pos : pos + len(part)] = part

    def is_free(self, pos: int) -> np.ndarray[Any, Any]:
        return np.asarray(self._tokens[:, pos] < 0)

    def at(self, pos: int, drawn: Tokens) -> Tokens:
        return np.where(self.is_free(pos), drawn, self._tokens[:, pos])
