"""What an evaluation found, as frozen results, and how they come out of a journal's records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..models.gguf_info import ffn_bytes
from ..models.profile import Profile
from ..policy import Policy
from ..runtime.llama import Llama
from .journal import Journal, Record
from .score import Scores

__all__ = [
    "DENSE",
    "TaskResult",
    "TextResult",
    "exp",
    "ffn_bytes_saved",
    "journal_key",
    "paired_fields",
    "skip_fields",
    "text_result",
    "values",
]

DENSE = "off"  # its arm in a journal


@dataclass(frozen=True)
class TextResult:
    """A policy on a text. SE: one standard error. Differences to dense are taken token by token; they are NaN if the
    dense pass was left out."""

    skip: str
    skip_rate: float  # skipped / all FFN blocks of scored tokens
    skip_rates: tuple[float, ...]  # the same by layer
    ffn_bytes_saved: float  # share of the FFN's weights that was not read
    attention_skip_rate: float  # skipped / all attention sublayers
    ppl: float
    ppl_se: float
    ppl_ratio: float  # to dense
    ppl_ratio_se: float
    kld_mean: float  # KL(dense || policy), nats
    kld_p99: float
    same_top: float  # share of tokens with dense's likeliest next token
    n_tokens: int  # scored


@dataclass(frozen=True)
class TaskResult:
    """A policy on a task. SE: one standard error, NaN for a single item. The difference's is that of paired items."""

    skip: str
    skip_rate: float
    skip_rates: tuple[float, ...]
    ffn_bytes_saved: float
    attention_skip_rate: float
    accuracy: float
    accuracy_se: float
    accuracy_diff: float  # to dense
    accuracy_diff_se: float
    n: int  # items


def ffn_bytes_saved(llm: Llama, policy: Policy, rates: Sequence[float]) -> float:
    """The share of FFN weight bytes that was not read, of skip rates by layer; what gates and stand-ins read in their
    place is taken off."""
    whole = np.array(ffn_bytes(llm.model_path, len(rates)), np.float64)
    profile, nothing = _profile(llm, policy), np.zeros_like(whole)
    instead = np.array(profile.stand_in_bytes, np.float64) if profile and policy.has_stand_ins else nothing
    gates = np.array(profile.gate_bytes, np.float64) if profile and policy.asks_gates else nothing
    return float((np.array(rates) * (whole - instead) - gates).sum() / whole.sum()) if whole.any() else 0.0


def _profile(llm: Llama, policy: Policy) -> Profile | None:
    """The profile that the policy goes by, if any."""
    return llm.profile if policy.needs_profile else None


def journal_key(llm: Llama, policy: Policy) -> str:
    """The policy's arm in a journal. With another profile it is another arm."""
    profile = _profile(llm, policy)
    if profile is None:
        return str(policy)
    return f"{policy} by profile {hashlib.sha256(profile.path.read_bytes()).hexdigest()[:16]}"


def skip_fields(
    llm: Llama, policy: Policy, records: Sequence[Record]
) -> tuple[str, float, tuple[float, ...], float, float]:
    """The fields that every result begins with."""
    n_tokens = sum(record.n_tokens for record in records)
    by_layer = np.sum([record.skipped for record in records], axis=0)
    every = [float(n) / n_tokens if n else 0.0 for n in by_layer]
    rates, attention = tuple(every[: len(every) // 2]), every[len(every) // 2 :]
    return str(policy), float(np.mean(rates)), rates, ffn_bytes_saved(llm, policy, rates), float(np.mean(attention))


def paired_fields(journal: Journal, key: str, n: int) -> tuple[float, float, float, float]:
    """Of one figure an item: mean, its standard error, mean difference to dense, its standard error."""
    mine, dense = (values(journal, k, n)[0] for k in (key, DENSE))
    return float(mine.mean()), _se(mine), float((mine - dense).mean()), _se(mine - dense)


def values(journal: Journal, key: str, n: int) -> npt.NDArray[np.float64]:
    """[n_kinds, of all n windows or items]"""
    return np.concatenate([record.values for record in journal.records(key, n)], axis=1)


def _se(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean, as llama.cpp's perplexity tool takes it."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def text_result(
    llm: Llama, policy: Policy, journal: Journal, key: str, dense_key: str | None, n_windows: int
) -> TextResult:
    mine = Scores(*values(journal, key, n_windows))
    nothing = np.full_like(mine.log_p, math.nan)
    dense = Scores(*([nothing] * 3 if dense_key is None else values(journal, dense_key, n_windows)))
    more = dense.log_p - mine.log_p
    ppl, ratio = exp(-float(mine.log_p.mean())), exp(float(more.mean()))
    return TextResult(
        *skip_fields(llm, policy, journal.records(key, n_windows)),
        ppl=ppl,
        ppl_se=ppl * _se(mine.log_p),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * _se(more),
        kld_mean=float(mine.kld.mean()),
        kld_p99=float(np.quantile(mine.kld, 0.99)),
        same_top=math.nan if dense_key is None else float(np.mean(mine.top == dense.top)),
        n_tokens=len(more),
    )
