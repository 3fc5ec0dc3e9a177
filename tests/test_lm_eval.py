"""pyskip as a model of lm-evaluation-harness: figures that an independent computation gives too, and the command."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raw import Raw

import pyskip

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'pyskip[lm-eval]'")

from lm_eval.api.registry import Registry, get_model

from pyskip.lm_eval import PyskipLM
from pyskip.runtime.generation import Generation

SPEC = "static:2,4"
N_CTX = 400
Tokens = list[int]


def open_lm(path: Path, skip: str = "off", n_ctx: int = N_CTX) -> PyskipLM:
    return PyskipLM(path=str(path), skip=skip, n_ctx=n_ctx, n_threads=2)


@pytest.fixture(scope="module", params=["off", SPEC])
def lm(request: pytest.FixtureRequest, tiny: Path) -> Iterator[PyskipLM]:
    lm = open_lm(tiny, request.param)
    yield lm
    lm.llm.close()


@pytest.fixture(scope="module")
def demo_lm(demo: Path) -> Iterator[PyskipLM]:
    lm = open_lm(demo)
    yield lm
    lm.llm.close()


def asked(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    """Requests, as far as a model sees them."""
    return [SimpleNamespace(args=args) for args in arguments]


def words(seed: int, n: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(["oak", "elm", "ash", "fir", "yew"], n))


def single_steps(lm: PyskipLM, tokens: Tokens) -> npt.NDArray[np.float64]:
    """Log-probabilities [n, n_vocab] after each token, one token a batch."""
    with Raw(Path(lm.llm.model_path), str(lm.llm.skip)) as raw:
        raw.skip.set_generated_from(-1, 0)
        x = raw.step([(token, pos, 0) for pos, token in enumerate(tokens)]).astype(np.float64)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)), np.float64)


def expected(lm: PyskipLM, context: Tokens, continuation: Tokens) -> float:
    log_p = single_steps(lm, (context + continuation)[:-1])[len(context) - 1 :]
    return float(log_p[np.arange(len(continuation)), continuation].sum())


# Likelihoods


def test_likelihoods_equal_single_steps(lm: PyskipLM) -> None:
    long = words(1, 70)
    pairs = [("The tree is", " an oak"), ("The tree is", " an elm, or two"), ("", "oak"), (long + " ", words(2, 8))]
    answers = lm.loglikelihood(asked(*pairs, (words(3, 6), " " + words(4, 80))), disable_tqdm=True)

    def tokens(text: str) -> Tokens:  # this vocabulary wants BOS
        return [1, *lm.llm.tokenize(text.encode(), add_bos=False)]

    assert len(tokens(long)) > 256  # more than a batch, as the last continuation is
    texts = [("The tree is", pairs[0][1]), ("The tree is", pairs[1][1]), ("", "oak"), (long, " " + words(2, 8))]
    for (context, continuation), (log_p, _) in zip([*texts, (words(3, 6), " " + words(4, 80))], answers, strict=True):
        n = len(tokens(context))
        whole = tokens(context + continuation)
        assert log_p == pytest.approx(expected(lm, whole[:n], whole[n:]), rel=1e-3)


def test_greedy_is_the_likeliest_token_each_time(lm: PyskipLM) -> None:
    tokens = lm.tok_encode("The tree is")
    n = len(tokens)
    for _ in range(4):
        tokens.append(int(single_steps(lm, tokens)[-1].argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 300]
    answers = lm._loglikelihood_tokens([(None, t[:n], t[n:]) for t in (tokens, other)], disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False]


def test_a_request_yields_the_same_whatever_else_is_asked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, when requests share more than a batch, all of their context, or nothing."""
    monkeypatch.setattr(pyskip.lm_eval, "BATCH", 16)
    lm = open_lm(tiny, SPEC)
    tokens = lm.tok_encode(words(5, 60))
    other = [*tokens[:5], 9, *tokens[6:]]
    requests = [(None, tokens[:n], tokens[m : m + 3]) for n, m in [(26, 0), (26, 40), (27, 0), (28, 30), (5, 0)]]
    requests += [(None, other[:n], tokens[:3]) for n in (27, 40)]
    together = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert lm._loglikelihood_tokens(requests[::-1], disable_tqdm=True)[::-1] == together
    assert [lm._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in requests] == together
    assert len(set(together)) == len(requests)

    prompts = asked(*((words(5, n), {"max_gen_toks": 3}) for n in (20, 21, 20, 3)))
    texts = lm.generate_until(prompts, disable_tqdm=True)
    assert [lm.generate_until([prompt], disable_tqdm=True)[0] for prompt in prompts] == texts
    lm.llm.close()


@pytest.mark.parametrize("n_words", [3, 60])
def test_rolling_is_the_sum_over_windows(tiny: Path, n_words: int) -> None:
    """Each token once, in windows of n_ctx tokens; before the first stands BOS, the last has a whole context."""
    lm = open_lm(tiny, SPEC, n_ctx=100)
    text = words(6, n_words)
    tokens = lm.llm.tokenize(text.encode(), add_bos=False)
    assert len(tokens) < 100 or 200 < len(tokens) < 300
    windows = [([1], tokens[:100])]
    if len(tokens) > 100:
        windows += [(tokens[99:100], tokens[100:200]), (tokens[len(tokens) - 101 : 200], tokens[200:])]
    (total,) = lm.loglikelihood_rolling(asked((text,)), disable_tqdm=True)
    assert total == pytest.approx(sum(expected(lm, *window) for window in windows), rel=1e-3)
    assert sum(len(continuation) for _, continuation in windows) == len(tokens)
    lm.llm.close()


def test_what_is_too_long_loses_its_beginning(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = open_lm(tiny, n_ctx=64)
    tokens = lm.tok_encode(words(7, 30))
    requests = [(None, tokens[:80], tokens[80:90]), (None, tokens[25:80], tokens[80:90])]
    cut, short = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert cut == short  # 65 tokens: the last is not seen
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "context (80) and continuation (10) exceed 64 tokens: the first 25 are left out"
    ]
    with pytest.raises(pyskip.PyskipError, match="a continuation has 65 tokens, expected 1 to 64"):
        lm._loglikelihood_tokens([(None, tokens[:5], tokens[5:70])])
    with pytest.raises(pyskip.PyskipError, match="a continuation has 0 tokens"):
        lm._loglikelihood_tokens([(None, tokens[:5], [])])
    lm.llm.close()


# Texts


def test_generation_is_that_of_pyskip_generate(demo_lm: PyskipLM, llm: pyskip.Llama) -> None:
    prompts = ["The capital of France is", "Once upon a time", "The capital of France is"]
    demo_lm.llm.skip = llm.skip = "cosine:threshold=0.974,run=2,warmup=2"
    texts = demo_lm.generate_until(asked(*((p, {"until": [], "max_gen_toks": 16}) for p in prompts)), True)
    demo_lm.llm.skip = "off"
    for prompt, text in zip(prompts, texts, strict=True):
        llm.reset()
        tokens = list(llm.tokenize(prompt.encode(), special=True))
        assert text == "".join(Generation(llm, tokens, max_tokens=16, temp=0.0, seed=None))
    assert texts[0] != texts[1]


def test_generation_stops_before_a_stop_string(demo_lm: PyskipLM) -> None:
    def answer(**kwargs: Any) -> str:
        (text,) = demo_lm.generate_until(asked(("The capital of France is", kwargs)), disable_tqdm=True)
        return str(text)

    whole = answer(max_gen_toks=16)
    stop = whole[5:8]
    assert answer(until=[stop, "\0"], max_gen_toks=16) == whole[: whole.index(stop)]
    assert answer(until=stop, max_gen_toks=16) == whole[: whole.index(stop)]
    assert len(answer(max_gen_toks=3)) < len(whole)
    assert answer(max_gen_toks=16) == whole


def test_sampling_follows_the_harness_seed(tiny: Path) -> None:
    lm = open_lm(tiny)

    def answer(seed: int, **kwargs: Any) -> str:
        random.seed(seed)  # as the harness's --seed
        (text,) = lm.generate_until(asked(("The tree is", {"max_gen_toks": 12, **kwargs})), disable_tqdm=True)
        return str(text)

    sampled = {"do_sample": True, "temperature": 1.5}
    assert answer(1, **sampled) == answer(1, **sampled) != answer(2, **sampled)
    assert answer(1, temperature=0.0) == answer(2)
    lm.llm.close()


def test_a_prompt_that_is_too_long_loses_its_beginning(tiny: Path) -> None:
    lm = open_lm(tiny, n_ctx=64)
    settings = {"max_gen_toks": 16}
    assert lm._prompt(words(8, 40), settings) == lm.tok_encode(words(8, 40))[-48:]
    assert len(lm.generate_until(asked((words(8, 40), settings)), disable_tqdm=True)) == 1
    with pytest.raises(pyskip.PyskipError, match="max_gen_toks is 64, expected less than the context of 64"):
        lm.generate_until(asked(("oak", {"max_gen_toks": 64})))
    lm.llm.close()


def test_a_conversation_by_the_models_template(tiny: Path) -> None:
    lm = open_lm(tiny)
    turns = [{"role": "user", "content": "Is it an oak?"}, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(turns[:1]) == "<|user|>Is it an oak?\n<|assistant|>"
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == "<|user|>Is it an oak?\n<|assistant|>It is"
    lm.llm.close()


# What is skipped


def test_the_policy_counts_and_off_is_dense(tiny: Path) -> None:
    pair, until = (words(9, 6), " " + words(10, 8)), {"max_gen_toks": 8}
    figures = []
    for skip, rates in [("off", [0] * 6), (SPEC, [0, 0, 1, 0, 1, 0])]:
        lm = open_lm(tiny, skip)
        (likelihood,) = lm.loglikelihood(asked(pair), disable_tqdm=True)
        assert lm.get_model_info()["skip_rates"] == rates
        (text,) = lm.generate_until(asked((pair[0], until)), disable_tqdm=True)
        info = lm.get_model_info()
        assert (info["skip"], info["skip_rates"]) == (skip, rates)
        assert info["skip_rate"] == pytest.approx(np.mean(rates))
        assert info["ffn_bytes_saved"] == pytest.approx(np.mean(rates))
        figures.append((likelihood, text))
        lm.llm.close()
    assert figures[0][0] != figures[1][0]
    assert figures[0][1] != figures[1][1]


# The harness


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model_args has no path, expected path=MODEL.gguf or path=demo"),
        ({"path": "demo", "skipp": 0.25}, "model_args has skipp, expected path, skip, profile, n_ctx and n_threads"),
        ({"path": "demo", "n_ctx": "many"}, "n_ctx is 'many', expected a whole number from 1"),
        ({"path": "demo", "skip": "nonsense"}, "nonsense"),
        ({"path": "/nowhere/model.gguf"}, "/nowhere/model.gguf"),
    ],
)
def test_mistakes_in_model_args_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pyskip.PyskipError, match=message) as raised:
        PyskipLM.create_from_arg_obj(arguments, {"batch_size": 1, "max_batch_size": None, "device": "cpu"})
    assert "\n" not in str(raised.value)


def test_the_harness_finds_the_model() -> None:
    """By name once pyskip.lm_eval is imported; newer ones by the entry point, a placeholder in their registry."""
    assert get_model("pyskip") is PyskipLM
    assert get_model("dummy").__name__ == "DummyLM"
    (entry,) = entry_points(group="lm_eval.models", name="pyskip")
    registry: Registry[Any] = Registry("model")
    registry.register("pyskip", target=entry)
    assert registry.get("pyskip") is PyskipLM


ITEMS: list[dict[str, Any]] = [
    {"q": "The tree is", "choices": ["an oak", "an elm", "a very old yew"], "gold": 0, "text": words(11, 30)},
    {"q": "Near it stands", "choices": ["a fir", "an ash", "nothing"], "gold": 1, "text": words(12, 90)},
]
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_the_command_evaluates_local_tasks_offline(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}}}
    for name, task in TASKS.items():  # JSON is YAML
        (tmp_path / f"{name}.yaml").write_text(
            json.dumps({"task": f"local_{name}", "test_split": "test", **data, **task})
        )
    command = [
        sys.executable,
        "-m",
        "pyskip.lm_eval",
        "--model",
        "pyskip",
        "--include_path",
        ".",
        "--output_path",
        "out",
    ]
    model = f'path={tiny},skip="{SPEC}",n_ctx={N_CTX},n_threads=2'
    tasks = ",".join(f"local_{name}" for name in TASKS)
    done = subprocess.run(
        [*command, "--model_args", model, "--tasks", tasks],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"skip {SPEC}: 33.3% of FFN blocks skipped, 33.3% of FFN bytes saved" in done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    document = json.loads(written.read_text())
    assert document["config"]["model"] == "pyskip"
    assert document["config"]["skip_rate"] == pytest.approx(1 / 3)

    lm = open_lm(tiny, SPEC)
    texts = [item["text"] for item in ITEMS]
    log_p = lm.loglikelihood_rolling(asked(*((text,) for text in texts)), disable_tqdm=True)
    results = document["results"]
    assert results["local_text"]["byte_perplexity,none"] == pytest.approx(
        np.exp(-sum(log_p) / sum(len(text) for text in texts)), rel=1e-6
    )
    answers = [lm.loglikelihood(asked(*((i["q"], " " + c) for c in i["choices"])), disable_tqdm=True) for i in ITEMS]
    right = [np.argmax([score for score, _ in a]) == i["gold"] for a, i in zip(answers, ITEMS, strict=True)]
    assert results["local_choices"]["acc,none"] == np.mean(right)
    assert results["local_answers"]["exact_match,none"] == 0.0
    lm.llm.close()
