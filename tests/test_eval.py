"""`pyskip eval`: figures that an independent computation gives too, and one line for every mistake."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import REFERENCE
from raw import Raw
from test_interrupt import PYSKIP, finish, started

import pyskip
from pyskip.errors import PolicyError, PyskipError
from pyskip.evaluation import TextResult, evaluate_task, evaluate_text
from pyskip.tasks import TaskItem, read_task, read_text

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Floats = npt.NDArray[np.float64]

WORDS = {
    "who": ["baker", "sailor", "teacher", "farmer", "painter", "doctor", "child", "king", "shepherd", "clerk"],
    "how": ["slowly", "gladly", "twice", "again", "alone", "early", "barely", "often"],
    "did": ["carried", "lost", "found", "painted", "sold", "counted", "forgot", "washed", "repaired"],
    "what": ["bread", "boat", "lamp", "letter", "coin", "basket", "window", "horse", "map", "violin"],
    "where": ["harbour", "market", "garden", "bridge", "school", "mountain", "river", "kitchen"],
}


def story(n_sentences: int) -> str:
    rng = np.random.default_rng(3)
    picks = ({key: rng.choice(words) for key, words in WORDS.items()} for _ in range(n_sentences))
    return "".join(
        f"The {p['who']} {p['how']} {p['did']} a {p['what']} near the {p['where']}, {i + 2} days later.\n"
        for i, p in enumerate(picks)
    )


def open_llm(path: Path, n_ctx: int, **kwargs: Any) -> pyskip.Llama:
    return pyskip.Llama(path, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_threads=2, verbose=False, **kwargs)


@pytest.fixture(scope="module")
def exact_llm(demo_f32: Path) -> Iterator[pyskip.Llama]:
    """As Raw(exact=True)."""
    llm = open_llm(demo_f32, 128, type_k=0, type_v=0)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def tiny_llm(tiny: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(tiny, 128)
    yield llm
    llm.close()


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def single_steps(path: Path, spec: str, sequences: list[list[int]]) -> list[Floats]:
    """Log-probabilities [n, n_vocab] after each token of each sequence, one token a batch."""
    with Raw(path, spec, exact=True) as raw:
        raw.skip.set_generated_from(-1, 0)
        return [
            log_softmax(raw.step([(token, pos, seq) for pos, token in enumerate(tokens)]))
            for seq, tokens in enumerate(sequences)
        ]


# Text


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
    command = [sys.executable, str(Path(__file__).with_name("perplexity.py")), str(demo), str(text), "256", "3"]
    done = subprocess.run(
        command, env={**os.environ, "LLAMA_CPP_LIB_PATH": str(REFERENCE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    llm = open_llm(demo, 256)
    (dense,) = evaluate_text(llm, text.read_text(), n_ctx=256, chunks=3)
    llm.close()
    assert dense.ppl == pytest.approx(float(done.stdout), rel=5e-5)


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


# Tasks


CONTEXT = "The sailor lost a coin near the harbour, and the teacher found"


def continuation(context: str, answer: str) -> TaskItem:
    return TaskItem("items.jsonl, line 1", context, (answer,), None)


def greedy(llm: pyskip.Llama, path: Path, context: str, n: int) -> str:
    """What single steps of the dense model yield."""
    tokens = llm.tokenize(context.encode(), add_bos=False, special=False)
    with Raw(path, exact=True) as raw:
        logits = raw.step([(token, pos, 0) for pos, token in enumerate(tokens)])
        found: list[int] = []
        for pos in range(len(tokens), len(tokens) + n):
            found.append(int(logits[-1].argmax()))
            logits = raw.step([(found[-1], pos, 0)])
    return llm.detokenize(found).decode()


def test_a_continuation_is_right_when_greedy_decoding_yields_it(exact_llm: pyskip.Llama, demo_f32: Path) -> None:
    answer = greedy(exact_llm, demo_f32, CONTEXT, 2)
    assert answer.startswith(" ")
    last = greedy(exact_llm, demo_f32, CONTEXT, 1) + " violin"
    items = [
        continuation(CONTEXT, answer),
        continuation(CONTEXT, answer[1:]),  # the blank between the two is put there
        continuation(CONTEXT + " ", answer[1:]),  # or taken from the context
        continuation(CONTEXT, last),  # only its last token is wrong
    ]
    every = "static:" + ",".join(map(str, range(1, 29)))
    dense, broken = evaluate_task(exact_llm, items, [every], n_ctx=128)
    assert (dense.accuracy, dense.n) == (0.75, 4)
    assert dense.accuracy_se == pytest.approx(0.25)
    assert (dense.accuracy_diff, dense.accuracy_diff_se) == (0.0, 0.0)
    assert (broken.accuracy, broken.accuracy_se, broken.accuracy_diff) == (0.0, 0.0, -0.75)
    assert broken.accuracy_diff_se == pytest.approx(0.25)
    assert broken.skip_rate == pytest.approx(28 / 30)


def test_a_choice_is_scored_by_likelihood_for_its_length(exact_llm: pyskip.Llama, demo_f32: Path) -> None:
    """Among choices of unlike lengths that begin alike; the context they share is decoded once, here it is not."""
    longest = "a coin near the harbour, and the teacher found a coin near the harbour"
    choices = ("it.", longest, "a violin", "a violin and a map", " bread", "it again")
    context = exact_llm.tokenize(CONTEXT.encode(), add_bos=False, special=False)
    sums, means = [], []
    for choice in choices:
        whole = CONTEXT + ("" if choice[0] == " " else " ") + choice
        tokens = exact_llm.tokenize(whole.encode(), add_bos=False, special=False)
        (log_p,) = single_steps(demo_f32, "off", [tokens])
        scored = np.arange(len(context), len(tokens))
        sums.append(float(log_p[scored - 1, np.array(tokens)[scored]].sum()))
        means.append(sums[-1] / len(choice))
    assert np.argmax(sums) != np.argmax(means)
    items = [TaskItem("items.jsonl, line 1", CONTEXT, choices, gold) for gold in range(len(choices))]
    told: list[float] = []
    evaluate_task(exact_llm, items, n_ctx=128, progress=lambda done, _, accuracy: told.append(accuracy * done))
    right = np.diff([0.0, *told])
    assert right == pytest.approx([float(gold == np.argmax(means)) for gold in range(len(choices))])


def test_one_item_has_no_standard_error(tiny_llm: pyskip.Llama) -> None:
    (row,) = evaluate_task(tiny_llm, [continuation("the king", "found")], n_ctx=64)
    assert row.n == 1
    assert math.isnan(row.accuracy_se)


def test_skip_rate_of_a_task_counts_scored_tokens(llm: pyskip.Llama) -> None:
    """Context of c tokens and an answer of a: positions c - 1 to c + a - 2 are scored."""
    answer = "a violin near the old bridge"
    c = len(llm.tokenize(CONTEXT.encode(), add_bos=False))
    a = len(llm.tokenize((CONTEXT + " " + answer).encode(), add_bos=False)) - c
    spec = f"cosine:threshold=-1,run=0,warmup={c + 1}"
    _, row = evaluate_task(llm, [continuation(CONTEXT, answer)], [spec], n_ctx=64)
    assert row.skip_rate == pytest.approx((a - 2) / a * 21 / 30)
    choice = TaskItem("items.jsonl, line 1", CONTEXT, (answer, answer), 0)
    assert evaluate_task(llm, [choice], [spec], n_ctx=64)[1].skip_rate == pytest.approx((a - 2) / a * 21 / 30)


# The command line


@pytest.fixture
def story_file(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(story(20))
    return str(path)


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    lines = [
        {"context": "The capital of France is", "continuation": "Paris"},
        {"context": "The capital of France is", "continuation": "bread"},
        {"query": "Question: What do bakers bake?", "choices": ["bread", "violins"], "gold": 0},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return str(path)


def test_text_json(cli: Run, story_file: str) -> None:
    flags = ("--chunks", "2", "--ctx", "64", "-t", "2", "--skip", "static:5,14,25", "--json")
    done = cli("eval", "demo", "--text", story_file, *flags)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    dense, row = document["results"]
    keys = {"skip", "skip_rate", "ffn_bytes_saved", "ppl", "ppl_se", "ppl_ratio", "ppl_ratio_se", "kld_mean"}
    assert keys | {"kld_p99", "same_top", "n_tokens"} <= set(dense) == set(row)
    assert (dense["skip"], dense["ppl_ratio"], dense["n_tokens"]) == ("off", 1.0, 62)
    assert (row["skip"], row["skip_rate"]) == ("static:5,14,25", pytest.approx(0.1))
    assert row["ppl"] / dense["ppl"] == pytest.approx(row["ppl_ratio"])
    assert (document["model"], document["text"], document["n_ctx"]) == ("demo", story_file, 64)


def test_task_json(cli: Run, task_file: str) -> None:
    done = cli("eval", "demo", "--task", task_file, "--chunks", "2", "--skip", "static:5", "--json")
    assert done.returncode == 0, done.stderr
    dense, row = json.loads(done.stdout)["results"]
    keys = {"skip", "skip_rate", "ffn_bytes_saved", "accuracy", "accuracy_se", "n", "accuracy_diff", "accuracy_diff_se"}
    assert keys <= set(dense) == set(row)
    assert (dense["skip"], dense["accuracy"], dense["n"]) == ("off", 0.5, 2)
    assert row["skip_rate"] == pytest.approx(1 / 30)
    one = cli("eval", "demo", "--task", task_file, "--chunks", "1", "--json")
    assert json.loads(one.stdout)["results"][0]["accuracy_se"] is None


def test_tables(cli: Run, story_file: str, task_file: str) -> None:
    done = cli("eval", "demo", "--text", story_file, "--ctx", "64", "--chunks", "1", "--skip", "static:5")
    header, off, static = done.stdout.splitlines()
    assert header.split()[:2] == ["skip", "skipped"]
    assert re.match(r"off +0\.0% +0\.0% +[\d.]+ ± [\d.]+ +1\.0000 ± 0\.0000 +0\.0000 +0\.000 +100\.0%$", off)
    assert re.match(r"static:5 +3\.3% +3\.3% ", static)
    assert len(header) == len(off) == len(static)
    done = cli("eval", "demo", "--task", task_file)
    assert re.match(r"off +0\.0% +0\.0% +66\.7% ± 33\.3% +\+0\.0% ± 0\.0%$", done.stdout.splitlines()[1])


def test_progress_on_a_terminal_is_one_line_that_goes_away(story_file: str) -> None:
    master, slave = pty.openpty()
    command = [*PYSKIP, "eval", "demo", "--text", story_file, "--ctx", "64", "--chunks", "2"]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave, check=True, timeout=120)
    os.close(slave)
    seen = os.read(master, 65536).decode()
    os.close(master)
    assert "1/2 windows" in seen
    assert "2/2 windows" in seen
    assert "\n" not in seen
    assert seen.endswith("\r\x1b[2K")


def test_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(story(2000))
    with started("eval", "demo", "--text", str(path), "--skip", "static:5") as process:
        time.sleep(4)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, out, _ = finish(process)
        took = time.monotonic() - begin
    assert (status, out) == (130, "")
    assert took < 5


# Mistakes


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"pyskip: [^\n]+\n", done.stderr)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "either --text or --task"),
        (["--text", "a", "--task", "b"], 2, "either --text or --task"),
        (["--text", "STORY", "--chunks", "0"], 2, "--chunks"),
        (["--text", "STORY", "--ctx", "4"], 2, "--ctx"),
        (["--text", "STORY", "--skip", "cosine:speed=3"], 1, "no setting"),
        (["--text", "STORY", "--skip", "static:5", "--skip", "static:99", "--ctx", "64"], 1, "99"),
        (["--text", "STORY", "--ctx", "2048"], 1, "tokens, expected at least one window of 2048"),
        (["--text", "missing.txt"], 1, "missing.txt: No such file"),
        (["--task", "."], 1, "directory"),
        (["--task", "STORY"], 1, "line 1: not JSON"),
    ],
)
def test_mistakes_on_the_command_line(cli: Run, story_file: str, args: list[str], status: int, said: str) -> None:
    refused(cli("eval", "demo", *(story_file if arg == "STORY" else arg for arg in args)), status, said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"fine\nnot \xff fine\n", "line 2: byte 0xff at offset 9 is not UTF-8"),
    ],
)
def test_bad_text(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    for read in (read_text, read_task):
        with pytest.raises(PyskipError, match=re.escape(said)) as error:
            read(path)
        assert str(path) in str(error.value)


GOOD = '{"context": "a", "continuation": "b"}'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        (DEEP, "not JSON"),
        ("[1]", "a JSON list, expected an object"),
        ("{}", 'no "context"'),
        ('{"context": "a"}', 'no "continuation"'),
        ('{"query": "a", "choices": ["b", "c"]}', 'no "gold"'),
        ('{"choices": ["b", "c"], "gold": 0}', 'no "query"'),
        ('{"context": "", "continuation": "b"}', '"context" is ""'),
        ('{"context": "a", "continuation": " "}', '"continuation" is " "'),
        ('{"context": "a", "continuation": 5}', '"continuation" is 5'),
        ('{"context": "a", "continuation": "\\ud800"}', "surrogate"),
        ('{"query": "a", "choices": "bc", "gold": 0}', '"choices" is "bc"'),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "at least two"),
        ('{"query": "a", "choices": ["b", null], "gold": 0}', '"choices[1]" is null'),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', '"gold" is 2, expected a whole number from 0 to 1'),
        ('{"query": "a", "choices": ["b", "c"], "gold": -1}', '"gold" is -1'),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', '"gold" is true'),
        ('{"query": "a", "choices": ["b", "c"], "gold": 0.0}', '"gold" is 0.0'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_lines(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    assert len(read_task(path, 1)) == 1
    with pytest.raises(PyskipError, match=re.escape(said)) as error:
        read_task(path)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(error.value)


def test_items_that_do_not_fit(tiny_llm: pyskip.Llama) -> None:
    with pytest.raises(PyskipError, match=r"line 1: \d+ tokens do not fit a context of 64: raise"):
        evaluate_task(tiny_llm, [continuation("word " * 100, "last")], n_ctx=64)
    with pytest.raises(PyskipError, match="no items"):
        evaluate_task(tiny_llm, [], n_ctx=64)


def test_a_text_or_context_too_small(tiny_llm: pyskip.Llama) -> None:
    with pytest.raises(PyskipError, match=r"the text has \d+ tokens, expected at least one window of 128"):
        evaluate_text(tiny_llm, "A few words.", n_ctx=128)
    with pytest.raises(PyskipError, match="n_batch=128, expected at least 129"):
        evaluate_text(tiny_llm, story(20), n_ctx=129)
    with pytest.raises(PyskipError, match="expected at least 8"):
        evaluate_text(tiny_llm, story(20), n_ctx=2)


def test_an_answer_that_adds_no_token(tiny_llm: pyskip.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_llm, "tokenize", lambda text, **_: [1, 2])
    with pytest.raises(PyskipError, match='line 1: "b" adds no token to the 2 of its context'):
        evaluate_task(tiny_llm, [continuation("a", "b")], n_ctx=64)
