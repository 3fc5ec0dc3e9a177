"""`pyskip eval --text`: figures that an independent computation gives too."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE, ROOT, make_profile, open_llm
from evaluations import Floats, single_steps, story

import pyskip
from pyskip.errors import PolicyError, PyskipError
from pyskip.evaluation import TextResult, evaluate_text


def test_every_figure_equals_single_steps(exact_llm: pyskip.Llama, demo_f32: Path) -> None:
    """Two windows of 128 tokens, dense and static, against float64 arithmetic on logits that came one by one."""
    spec = "static:5,14,25"
    text = story(40)
    dense, policy = evaluate_text(exact_llm, text, [spec], n_ctx=128, chunks=2)

    tokens = exact_llm.tokenize(text.encode(), add_bos=False, special=False)  # this vocabulary wants no BOS
    windows = [tokens[:128], tokens[128:256]]
    targets = np.concatenate([window[65:] for window in windows])
    p, q = (np.concatenate([log_p[64:127] for log_p in single_steps(demo_f32, s, windows)]) for s in ("off", spec))
    log_p, log_q = (x[np.arange(126), targets] for x in (p, q))
    kld = (np.exp(p) * (p - q)).sum(axis=1)

    def se(values: Floats) -> float:
        return float(np.sqrt(((values - values.mean()) ** 2).sum() / 125 / 126))

    assert (dense.skip, policy.skip) == ("off", spec)
    assert dense.n_tokens == policy.n_tokens == 126
    assert dense.ppl == pytest.approx(math.exp(-log_p.mean()), rel=1e-4)
    assert dense.ppl_se == pytest.approx(dense.ppl * se(log_p), rel=1e-3)
    assert policy.ppl == pytest.approx(math.exp(-log_q.mean()), rel=1e-4)
    assert policy.ppl_ratio == pytest.approx(math.exp((log_p - log_q).mean()), rel=1e-4)
    assert policy.ppl_ratio_se == pytest.approx(policy.ppl_ratio * se(log_p - log_q), rel=1e-3)
    assert policy.kld_mean == pytest.approx(kld.mean(), rel=1e-3)
    assert policy.kld_p99 == pytest.approx(np.quantile(kld, 0.99), rel=1e-3)
    assert policy.same_top == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean(), abs=1.5 / 126)
    assert policy.kld_mean > 0.01
    assert policy.ppl > dense.ppl


def test_dense_equals_unpatched_llama_cpp(demo: Path, tmp_path: Path) -> None:
    """llama-perplexity's arithmetic over a library without pyskip's patches, to four digits."""
    text = tmp_path / "text.txt"
    text.write_text(story(80))
    command = [sys.executable, str(ROOT / "tests" / "support" / "perplexity.py"), str(demo), str(text), "256", "3"]
    done = subprocess.run(
        command, env={**os.environ, "LLAMA_CPP_LIB_PATH": str(REFERENCE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    llm = open_llm(demo, 256, kernels="upstream")
    (dense,) = evaluate_text(llm, text.read_text(), n_ctx=256, chunks=3)
    llm.close()
    assert dense.ppl == pytest.approx(float(done.stdout), rel=5e-5)


def test_attention_and_what_the_prompt_chooses(tiny_llm: pyskip.Llama) -> None:
    """A window's first half, which is not scored, is the prompt."""
    specs = ["static:attn=1+2", "adaskip:n=4"]
    dense, static, adaskip = evaluate_text(tiny_llm, story(20), specs, n_ctx=64, chunks=2)
    assert (dense.attention_skip_rate, dense.skip_rate) == (0.0, 0.0)
    assert static.attention_skip_rate == pytest.approx(2 / 6)
    assert static.skip_rate == 0.0
    assert 6 * (adaskip.attention_skip_rate + adaskip.skip_rate) >= 4 - 1e-9
    assert adaskip.kld_mean > 0.01


def test_windows_begin_with_the_vocabularys_bos(tiny_llm: pyskip.Llama, tiny: Path) -> None:
    text = story(20)
    (dense,) = evaluate_text(tiny_llm, text, n_ctx=64, chunks=2)
    tokens = [1, *tiny_llm.tokenize(text.encode(), add_bos=False, special=False)]
    windows = [tokens[:64], [1, *tokens[65:128]]]
    scored = [
        log_p[np.arange(32, 63), window[33:]]
        for window, log_p in zip(windows, single_steps(tiny, "off", windows), strict=True)
    ]
    assert dense.n_tokens == 62
    assert dense.ppl == pytest.approx(math.exp(-np.concatenate(scored).mean()), rel=1e-4)


def check_dense(row: TextResult) -> None:
    assert (row.skip, row.skip_rate, row.ffn_bytes_saved) == ("off", 0.0, 0.0)
    assert (row.ppl_ratio, row.ppl_ratio_se, row.kld_mean, row.kld_p99, row.same_top) == (1.0, 0.0, 0.0, 0.0, 1.0)


def test_off_is_the_first_row_and_arms_leave_it_alone(tiny_llm: pyskip.Llama) -> None:
    text = story(20)
    (alone,) = evaluate_text(tiny_llm, text, ["off"], n_ctx=64)
    check_dense(alone)
    rows = evaluate_text(tiny_llm, text, ["static:2", "off", "static:2", "cosine:cold_start=1,cold_end=1"], n_ctx=64)
    assert [row.skip.partition(":")[0] for row in rows] == ["off", "static", "cosine"]
    assert rows[0] == alone
    assert rows[1] == evaluate_text(tiny_llm, text, ["static:2"], n_ctx=64)[1]
    assert rows[1].ppl != alone.ppl


def test_a_gate_that_always_runs_equals_dense(llm: pyskip.Llama) -> None:
    dense, runs = evaluate_text(llm, story(8), ["cosine:threshold=2,warmup=0"], n_ctx=64)
    assert runs.skip_rate == 0.0
    assert runs.ppl == pytest.approx(dense.ppl, rel=1e-5)
    assert runs.kld_mean == pytest.approx(0.0, abs=1e-6)


def test_batches_do_not_matter(tiny: Path, tmp_path: Path) -> None:
    """What is decoded 128 tokens at a time, or 8, or one by one."""
    profile = tmp_path / "tiny.skip.gguf"
    make_profile.make_profile(tiny, profile, kind="f32")
    rows = []
    for n_ubatch in (128, 8, 1):
        llm = open_llm(tiny, 128, n_ubatch=n_ubatch, profile=profile, type_k=0, type_v=0, flash_attn=False)
        rows.append(evaluate_text(llm, story(30), ["0.5", "random:rate=0.5"], n_ctx=128, chunks=3))
        llm.close()
    assert 0.2 < rows[0][1].skip_rate < 0.8
    assert rows[0][1].kld_mean > 0.01
    for other in rows[1:]:
        for expected, found in zip(rows[0], other, strict=True):
            assert found.skip_rates == expected.skip_rates
            assert found.ppl == pytest.approx(expected.ppl, rel=1e-5)
            assert found.kld_mean == pytest.approx(expected.kld_mean, rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "share", "layers"),
    [
        ("static:5,14,25", 1.0, {5, 14, 25}),
        ("static:29", 1.0, {29}),
        # what follows one test is skipped up to the cold end
        ("cosine:threshold=-1,run=0,warmup=0", 1.0, set(range(5, 26))),
        # of positions 32 to 62, those from 50 on
        ("cosine:threshold=-1,run=0,warmup=50", 13 / 31, set(range(5, 26))),
        ("cosine:threshold=-1,run=0,warmup=64", 0.0, set()),
    ],
)
def test_skip_rate_counts_scored_tokens(llm: pyskip.Llama, spec: str, share: float, layers: set[int]) -> None:
    _, row = evaluate_text(llm, story(8), [spec], n_ctx=64)
    assert row.skip_rates == pytest.approx([share if il in layers else 0.0 for il in range(30)])
    assert row.skip_rate == pytest.approx(share * len(layers) / 30)
    assert row.ffn_bytes_saved == pytest.approx(row.skip_rate)  # equal layers, and nothing read in their place


def test_the_llama_is_as_before(llm: pyskip.Llama) -> None:
    llm.skip = "static:7"
    prompt = llm.tokenize(b"The capital of France is")
    before = next(iter(llm.generate(prompt, temp=0.0)))
    evaluate_text(llm, story(8), ["static:2"], n_ctx=64)
    with pytest.raises(PolicyError):
        evaluate_text(llm, story(8), ["static:2", "static:99"], n_ctx=64)
    assert str(llm.skip) == "static:7"
    assert len(llm.take_trace()) == 0
    assert next(iter(llm.generate(prompt, temp=0.0))) == before


def test_progress(tiny_llm: pyskip.Llama) -> None:
    told: list[tuple[int, int, float]] = []
    rows = evaluate_text(tiny_llm, story(40), ["static:2"], n_ctx=64, chunks=3, progress=lambda *a: told.append(a))
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == pytest.approx(rows[1].ppl_ratio)


def test_a_text_or_context_too_small(tiny_llm: pyskip.Llama) -> None:
    with pytest.raises(PyskipError, match=r"the text has \d+ tokens, expected at least one window of 128"):
        evaluate_text(tiny_llm, "A few words.", n_ctx=128)
    with pytest.raises(PyskipError, match="n_batch=128, expected at least 129"):
        evaluate_text(tiny_llm, story(20), n_ctx=129)
    with pytest.raises(PyskipError, match="expected at least 8"):
        evaluate_text(tiny_llm, story(20), n_ctx=2)
