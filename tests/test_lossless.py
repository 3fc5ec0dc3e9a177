"""A model that drafts for itself (lossless=, --lossless): when it does, and what it says. That nothing else changes,
tests/test_draft.py and test_server_draft.py hold for all that drafts."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import make_family
from kinds import KINDS, make_kind
from serving import running

import pyskip

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

PROMPT = [1, *(5 + i % 7 for i in range(20))]
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "1, 2, 4, 8, 16,",
)


def load(path: Path, **kwargs: Any) -> pyskip.Llama:
    return pyskip.Llama(path, verbose=False, **{"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, **kwargs})


def drawn(llm: pyskip.Llama, n: int, **sampling: Any) -> list[int]:
    """What follows PROMPT."""
    return [token for token, _ in zip(llm.generate(PROMPT, **sampling), range(n), strict=False)]


def ready(llm: pyskip.Llama, skip: str) -> pyskip.Llama:
    """Empty, PROMPT decoded, and what comes is generated."""
    llm.reset()
    llm.engine.clear()
    llm.skip = skip
    llm.reset_skip_stats()
    llm.start_trace(64)
    llm.mark_generated(len(PROMPT))
    llm.eval(PROMPT)
    return llm


def left(llm: pyskip.Llama) -> tuple[Any, ...]:
    """What a decode leaves behind."""
    trace = llm.take_trace()
    return llm.save_sequence(), llm.skip_stats(), trace.positions.tolist(), trace.skipped.tolist(), llm.n_tokens


@pytest.fixture(scope="module")
def drafting(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(load(tiny, lossless="always")) as llm:
        yield llm


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(load(tiny)) as llm:
        yield llm


def test_what_it_measures_leaves_nothing_behind(tiny: Path, plain: pyskip.Llama) -> None:
    with closing(load(tiny, lossless="always", skip="static:1,3")) as llm:
        assert (llm.n_tokens, llm.n_drafted) == (0, 0)
        assert llm.skip_stats().n_tokens == llm.skip_stats().n_prompt == 0
        assert llm.save_sequence() == b""
        assert drawn(llm, 12, temp=0.0) != drawn(plain, 12, temp=0.0)  # the policy decides, as without


@pytest.mark.parametrize("skip", ["off", "static:1,3", "cosine:threshold=0.5,cold_start=1,cold_end=1,warmup=2"])
def test_a_draft_leaves_nothing_behind(plain: pyskip.Llama, drafting: pyskip.Llama, skip: str) -> None:
    """To the last bit: before its tokens are verified, and once they were rejected and others are decoded."""
    ready(plain, skip)
    ready(drafting, skip)
    for token in (7, 300, 9, 10):
        assert left(drafting)[0] == left(plain)[0]
        drafted = drafting.draft_model(np.array([*drafting.eval_tokens, token], np.intc))
        assert len(drafted) > 0
        assert left(drafting)[0] == left(plain)[0]
        for llm in (plain, drafting):
            llm.eval([token])
        assert left(drafting) == left(plain)
    plain.skip = drafting.skip = "off"


def test_where_nothing_can_be_gained(tiny: Path, plain: pyskip.Llama) -> None:
    with closing(load(tiny, n_batch=1, n_ubatch=1, lossless=True)) as llm:
        assert llm.lossless is not None
        assert not llm.lossless.pays
        assert llm.lossless.line.startswith("running dense, drafts would gain nothing: ")
        assert llm.draft_model is None
        assert drawn(llm, 8, temp=0.0) == drawn(plain, 8, temp=0.0)
        assert llm.n_drafted == 0


def test_it_decides_by_itself(tiny: Path, plain: pyskip.Llama) -> None:
    with closing(load(tiny, lossless=True)) as llm:
        assert llm.lossless is not None
        assert (llm.draft_model is not None) == llm.lossless.pays
        assert "verifying 4 tokens takes" in llm.lossless.line
        assert drawn(llm, 80, temp=0.0) == drawn(plain, 80, temp=0.0)


@pytest.mark.slow
def test_the_demo_says_the_same(demo: Path) -> None:
    """With quantised weights: pyskip's kernels and flash attention compute a row to the same bits in any batch."""
    n = 0
    with closing(load(demo)) as plain, closing(load(demo, lossless="always")) as llm:
        for prompt in PROMPTS:
            tokens = llm.tokenize(prompt.encode())
            answers = [
                [token for token, _ in zip(one.generate(tokens, temp=0.0), range(64), strict=False)]
                for one in (plain, llm)
            ]
            assert answers[0] == answers[1]
            n += len(answers[0])
        assert n == 64 * len(PROMPTS)
        assert 0.05 * llm.n_drafted < llm.n_accepted < llm.n_drafted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_greedy_of_several_architectures(tmp_path: Path, name: str) -> None:
    """Token for token, over some thousand."""
    path = make_family(tmp_path / f"{name}.gguf", name)
    exact: dict[str, Any] = {"n_ctx": 512, "type_k": 0, "type_v": 0, "flash_attn": False, "kernels": "upstream"}
    n = 0
    with closing(load(path, **exact)) as plain, closing(load(path, lossless="always", **exact)) as llm:
        for seed in range(12):
            prompt = [1, *np.random.default_rng(seed).integers(5, 300, 16).tolist()]
            said = [
                [
                    token
                    for token, _ in zip(one.generate(prompt, temp=0.0, repeat_penalty=1.1), range(160), strict=False)
                ]
                for one in (plain, llm)
            ]
            assert said[0] == said[1], seed
            n += len(said[0])
        assert n >= 1500
        assert 0 < llm.n_accepted < llm.n_drafted


def quantile(df: int, z: float) -> float:
    """Of chi-square, after Wilson and Hilferty: that which lies z standard deviations up."""
    return df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3


def distance(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> tuple[float, int]:
    """Chi-square of two samples of one size, and its degrees of freedom; what is rare is one class."""
    counts = [Counter(one), Counter(other)]
    common = [key for key, n in (counts[0] + counts[1]).items() if n >= 20]
    pairs = np.array([[count[key] for key in common] for count in counts], float)
    rest = len(one) - pairs.sum(axis=1)
    table = np.column_stack([pairs, rest]) if rest.sum() >= 20 else pairs
    return float(((table[0] - table[1]) ** 2 / table.sum(axis=0)).sum()), table.shape[1] - 1


@pytest.mark.slow
def test_sampled_from_the_same_distribution(plain: pyskip.Llama, drafting: pyskip.Llama) -> None:
    """Of pairs of tokens that were drafted, and the same test finds another policy's distribution to be another one."""
    drafting.reset_skip_stats()

    def sample(llm: pyskip.Llama, seeds: range) -> list[tuple[int, ...]]:
        pairs = []
        for seed in seeds:
            llm.set_seed(seed)
            pairs.append(tuple(drawn(llm, 3, temp=0.7, top_k=3, top_p=1.0, min_p=0.0)[1:]))
        return pairs

    expected, found = sample(plain, range(500)), sample(drafting, range(10000, 10500))
    assert 0 < drafting.n_accepted < drafting.n_drafted
    chi, df = distance(expected, found)
    assert df >= 8
    assert chi < quantile(df, 3.7)  # one in ten thousand
    plain.skip = "static:1,3"
    other, df = distance(expected, sample(plain, range(20000, 20500)))
    plain.skip = "off"
    assert other > quantile(df, 3.7)


def test_stopped_in_mid_answer(drafting: pyskip.Llama) -> None:
    generator = drafting.generate(PROMPT, temp=0.0)
    before = [next(generator) for _ in range(3)]
    drafting.set_abort(True)
    with pytest.raises(pyskip.DecodeError):
        list(generator)  # what was verified already still comes
    drafting.set_abort(False)
    assert drawn(drafting, 3, temp=0.0) == before


def test_refused(tiny: Path) -> None:
    with pytest.raises(pyskip.ModelLoadError, match=r"lossless and draft_model .* leave the other out"):
        load(tiny, lossless=True, draft_model=tiny)
    with pytest.raises(pyskip.ModelLoadError, match="lossless and target_tps"):
        load(tiny, lossless=True, target_tps=5.0)
    with pytest.raises(pyskip.ModelLoadError, match="lossless is 'sometimes', expected"):
        load(tiny, lossless="sometimes")


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_cannot(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Whose state cannot be cut, or that do not generate: a line, and no crash."""
    path = make_kind(tmp_path / f"{kind}.gguf", kind)
    with pytest.raises(pyskip.PyskipError, match=r"is (a )?recurrent or|encoder|KV cache") as caught:
        load(path, lossless="always")
    assert "\n" not in str(caught.value)
    for args in (
        ("generate", str(path), "-p", "w1"),
        ("chat", str(path), "-p", "w1"),
        ("serve", str(path), "--port", "0"),
    ):
        done = cli(*args, "--lossless", "--skip", "off", "-t", "1")
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("pyskip: ")


def test_usage(plain: pyskip.Llama, drafting: pyskip.Llama) -> None:
    """Of each completion by itself; without drafts it is as ever."""
    kwargs: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "repeat_penalty": 1.1}
    assert set(plain.create_completion("w1 w2", **kwargs)["usage"]) == {
        "prompt_tokens", "completion_tokens", "total_tokens"
    }  # fmt: skip
    messages = [{"role": "user", "content": "w1 w2"}]
    for _ in range(2):
        drafting.reset_skip_stats()
        for ask in (drafting.create_completion, drafting.create_chat_completion):
            n_drafted, n_accepted = drafting.n_drafted, drafting.n_accepted
            usage = ask("w1 w2" if ask == drafting.create_completion else messages, **kwargs)["usage"]
            assert usage["n_drafted"] == drafting.n_drafted - n_drafted > 0
            assert usage["n_accepted"] == drafting.n_accepted - n_accepted


def test_pickled(drafting: pyskip.Llama) -> None:
    with closing(pickle.loads(pickle.dumps(drafting))) as copy:
        assert copy.lossless.always
        assert drawn(copy, 8, temp=0.0) == drawn(drafting, 8, temp=0.0)
        assert copy.n_drafted > 0


def test_on_the_command_line(cli: Cli, tiny: Path) -> None:
    flags = ("-n", "20", "-t", "1", "-c", "128", "--temp", "0")
    plain = json.loads(cli("generate", str(tiny), "-p", "w1 w2", "--skip", "off", "--json", *flags).stdout)
    done = cli("generate", str(tiny), "-p", "w1 w2", "--lossless", "--json", *flags)
    document = json.loads(done.stdout)
    assert (document["text"], document["skip"]["spec"]) == (plain["text"], "off")
    assert document["n_drafted"] >= document["n_accepted"]
    assert "verifying 4 tokens takes" in done.stderr
    refused = cli("chat", str(tiny), "-p", "w1", "--lossless", "--draft", str(tiny), *flags)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr


@pytest.mark.loopback
@pytest.mark.slow
def test_served(tiny: Path, plain: pyskip.Llama) -> None:
    """The line that says why, and of the requests that come at once each as alone."""
    body = {"prompt": PROMPT, "n_predict": 40, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    with running(str(tiny), "-c", "128", "--lossless") as server:
        assert any("verifying 4 tokens takes" in line for line in server.before)
        assert len(server.post("/completion", body).json()["tokens"]) == 40


def test_a_server_refuses_a_pace_beside_it(cli: Cli, tiny: Path) -> None:
    done = cli("serve", str(tiny), "--lossless", "--target-tps", "5")
    assert (done.returncode, "--target-tps" in done.stderr) == (2, True), done.stderr
