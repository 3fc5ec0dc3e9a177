"""`pyskip eval --task`: items right and wrong, and one line for every file that is no task."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from evaluations import continuation, single_steps
from raw import Raw

import pyskip
from pyskip.errors import PyskipError
from pyskip.evaluation import evaluate_task
from pyskip.evaluation.tasks import TaskItem, read_task, read_text

CONTEXT = "The sailor lost a coin near the harbour, and the teacher found"


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


# Mistakes


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


def test_an_answer_that_adds_no_token(tiny_llm: pyskip.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_llm, "tokenize", lambda text, **_: [1, 2])
    with pytest.raises(PyskipError, match='line 1: "b" adds no token to the 2 of its context'):
        evaluate_task(tiny_llm, [continuation("a", "b")], n_ctx=64)
