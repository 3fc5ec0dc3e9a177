"""The paper's policy inside the graph, against an implementation of its own in NumPy that sees the same x and z."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from raw import Raw

import pyskip
from pyskip.policy import Cosine, parse_skip

PROMPT = [1, 4093, 198, 2683, 359, 260, 3286, 563, 253, 1789, 30]


def decide(
    policy: Cosine, index: int, x: npt.NDArray[np.float64], z: npt.NDArray[np.float64]
) -> tuple[list[bool], float]:
    """Section 3 of the paper for one generated token: x, z [n_layer, n_embd]. Which blocks are skipped, and how near
    the nearest test came to the threshold."""
    n_layer, to_skip, nearest = len(x), 0, np.inf
    skipped = [False] * n_layer
    for il in range(policy.cold_start, n_layer - policy.cold_end):
        if to_skip > 0:
            skipped[il] = True
            to_skip -= 1
        elif index >= policy.warmup:
            similarity = x[il] @ z[il] / np.sqrt((x[il] @ x[il]) * (z[il] @ z[il]))
            nearest = min(nearest, abs(similarity - policy.threshold))
            if similarity >= policy.threshold:
                to_skip = policy.run if policy.run > 0 else n_layer
    return skipped, nearest


@pytest.mark.parametrize(
    "spec", ["cosine:threshold=0.975,run=2,warmup=16", "cosine:threshold=0.97,run=1,cold_start=2,cold_end=1"]
)
def test_every_decision_equals_numpy(demo: Path, spec: str) -> None:
    policy = parse_skip(spec)
    assert isinstance(policy, Cosine)
    n_gen = 300
    rates = []
    with Raw(demo, spec, taps=("ffn_inp-", "l_out-")) as raw:
        raw.skip.set_generated_from(0, len(PROMPT))
        logits = raw.decode([(t, i, 0) for i, t in enumerate(PROMPT)])
        for index in range(n_gen):
            logits = raw.decode([(int(logits[-1].argmax()), len(PROMPT) + index, 0)])
            x, z = (np.stack([raw.tapped[f"{n}-{il}"] for il in range(raw.skip.n_layer)]) for n in ("ffn_inp", "l_out"))
            expected, nearest = decide(policy, index, x.astype(float), z.astype(float))
            found = raw.skip.take_trace(1).skipped[0].tolist()
            assert found == expected or nearest < 1e-5, index
            for il in np.flatnonzero(found):
                np.testing.assert_array_equal(z[il], x[il])
            rates.append(np.mean(found))
        assert raw.skip.take_trace(1).skipped.shape == (0, raw.skip.n_layer)
    assert np.sum(rates[: policy.warmup]) == 0
    assert 0.05 < np.mean(rates[policy.warmup :]) < 0.6


def test_everything_between_the_cold_regions(llm: pyskip.Llama) -> None:
    """threshold -1, run 0: after the first test, in layer cold_start, all is skipped up to the cold end."""
    llm.skip = Cosine(threshold=-1, run=0, cold_start=3, cold_end=5, warmup=4)
    llm.create_completion("Dogs are", max_tokens=24, temperature=0, seed=1)
    stats = llm.skip_stats()
    n = stats.n_tokens
    assert n >= 20
    assert stats.skipped == (0,) * 4 + (n - 4,) * 21 + (0,) * 5
    assert stats.evaluated == (n,) * 4 + (4,) * 21 + (n,) * 5


def test_prompt_is_dense_and_counted_apart(llm: pyskip.Llama) -> None:
    prompt = llm.tokenize(b"The quick brown fox jumps over the lazy dog")
    llm.skip = "cosine:threshold=-1,run=0,warmup=0"
    for _, _token in zip(range(5), llm.generate(prompt, temp=0.0), strict=False):
        pass
    stats = llm.skip_stats()
    assert stats.n_prompt == len(prompt)
    assert sum(stats.prompt_skipped) == 0
    assert stats.n_tokens == 4  # the fifth was sampled and never decoded
    for evaluated, skipped in zip(stats.evaluated, stats.skipped, strict=True):
        assert evaluated + skipped == stats.n_tokens
    assert stats.rate == sum(stats.skipped) / (4 * 30)
