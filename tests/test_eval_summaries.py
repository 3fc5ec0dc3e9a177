"""`pyskip eval --task` with articles: what is asked, what counts as generated, and ROUGE-L."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluations import Run, story

import pyskip
from pyskip.errors import PyskipError
from pyskip.evaluation.journal import Journal
from pyskip.evaluation.summaries import _prompt, evaluate_summaries
from pyskip.evaluation.tasks import Article, read_task
from pyskip.runtime.generation import Generation, chat_tokens

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the extra `eval` is not installed")

SPECS = ["static:3", "cosine:threshold=-1,run=0,cold_start=1,cold_end=1,warmup=0"]
ARTICLE = Article("items.jsonl, line 1", story(3), "The baker found a lamp. The king sold the boat.")
OTHER = Article("items.jsonl, line 2", story(5)[-200:], "A horse near the river.")


def generated(llm: pyskip.Llama, tokens: list[int], spec: str, n: int) -> tuple[str, float]:
    """As `pyskip generate` does it, from an empty context, but for the batches of the prompt."""
    llm.reset()
    llm.skip = spec
    llm.eval(tokens[:-1])
    generation = Generation(llm, tokens, max_tokens=n, temp=0.0, seed=None)
    list(generation)
    answer = generation.answer()
    return answer.text, answer.skip.rate


def rouge_l(highlights: str, text: str) -> float:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(highlights, text)["rougeL"].fmeasure)


@pytest.mark.parametrize("template", [True, False])
def test_summaries_are_those_of_generate(llm: pyskip.Llama, monkeypatch: pytest.MonkeyPatch, template: bool) -> None:
    """Under each policy, whatever the one before has left; the prompt stays dense but under static."""
    if template:
        question = "Summarize the article in three sentences.\n\n" + ARTICLE.text
        tokens = chat_tokens(llm, [{"role": "user", "content": question}])
    else:
        monkeypatch.delitem(llm.metadata, "tokenizer.chat_template")
        tokens = llm.tokenize((ARTICLE.text + "\n\nTL;DR:").encode(), add_bos=True, special=False)
    expected = [generated(llm, tokens, spec, 12) for spec in ("off", *SPECS)]
    assert len({text for text, _ in expected}) == 3
    rows = evaluate_summaries(llm, [ARTICLE], SPECS, n_predict=12)
    assert [row.skip for row in rows] == ["off", SPECS[0], str(pyskip.parse_skip(SPECS[1]))]
    for row, (text, rate) in zip(rows, expected, strict=True):
        assert row.rouge_l == pytest.approx(rouge_l(ARTICLE.highlights, text))
        assert row.skip_rate == pytest.approx(rate)
        assert row.n == 1
    assert rows[2].skip_rate == pytest.approx(27 / 30)


def test_against_dense_in_pairs(tiny_llm: pyskip.Llama) -> None:
    articles = [ARTICLE, OTHER]
    dense, one = evaluate_summaries(tiny_llm, articles, SPECS[:1], n_predict=8)
    alone = [evaluate_summaries(tiny_llm, [article], SPECS[:1], n_predict=8) for article in articles]
    figures = np.array([[row.rouge_l for row in rows] for rows in alone])
    assert (dense.rouge_l_diff, dense.rouge_l_diff_se, one.n) == (0.0, 0.0, 2)
    assert [dense.rouge_l, one.rouge_l] == pytest.approx(figures.mean(axis=0))
    assert one.rouge_l_diff == pytest.approx((figures[:, 1] - figures[:, 0]).mean())
    assert one.rouge_l_se == pytest.approx(abs(figures[0, 1] - figures[1, 1]) / 2)


def test_an_article_is_cut_to_what_the_context_holds(tiny_llm: pyskip.Llama) -> None:
    """At its end: what comes before and after it in the prompt stays, and little of the room is left."""
    short, long = (_prompt(tiny_llm, Article("", text, ""), 8) for text in ("The", story(20)))
    assert 128 - 8 - 4 <= len(long) <= 128 - 8
    before, _, after = tiny_llm.detokenize(short).decode().partition("The")
    whole = tiny_llm.detokenize(long).decode()
    article = whole.removeprefix(before).removesuffix(after)
    assert len(article) == len(whole) - len(before) - len(after)
    assert story(20).startswith(article)
    (row,) = evaluate_summaries(tiny_llm, [Article("", story(20), "A horse.")], n_predict=8)
    assert row.n == 1


def test_no_room_for_an_article(tiny_llm: pyskip.Llama) -> None:
    for n_predict in (127, 128, 4096):
        with pytest.raises(PyskipError, match=f"line 1: a context of 128 tokens has no room .* summary of {n_predict}"):
            evaluate_summaries(tiny_llm, [ARTICLE], n_predict=n_predict)
    with pytest.raises(PyskipError, match="no articles"):
        evaluate_summaries(tiny_llm, [])


def test_a_run_that_was_taken_up(tiny_llm: pyskip.Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = [ARTICLE, OTHER, ARTICLE]
    whole = evaluate_summaries(tiny_llm, articles, SPECS, n_predict=8)
    path = tmp_path / "run.jsonl"
    evaluate_summaries(tiny_llm, articles[:1], SPECS[:1], n_predict=8, journal=Journal(path))
    path.write_bytes(path.read_bytes()[:-9])
    evaluate_summaries(tiny_llm, articles, [], n_predict=8, journal=Journal(path))
    assert evaluate_summaries(tiny_llm, articles, SPECS, n_predict=8, journal=Journal(path)) == whole
    monkeypatch.setattr(Generation, "__iter__", None)  # nothing is left to do
    assert evaluate_summaries(tiny_llm, articles, SPECS, n_predict=8, journal=Journal(path)) == whole


# Files and the command line


LINE = '{"article": "The king.", "highlights": "A king.", "id": 5}'
ITEM = '{"context": "a", "continuation": "b"}'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINE, '{"article": "a"}'], 'line 2: no "highlights"'),
        ([LINE, '{"highlights": "a"}'], 'line 2: no "article"'),
        ([LINE, '{"article": " ", "highlights": "a"}'], 'line 2: "article" is " "'),
        ([LINE, '{"article": "a", "highlights": 3}'], 'line 2: "highlights" is 3'),
        ([ITEM, LINE], "line 2: found articles behind items, expected one kind"),
        ([LINE, "", ITEM, ITEM], "line 3: found items behind articles, expected one kind"),
    ],
)
def test_bad_lines(tmp_path: Path, lines: list[str], said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines))
    assert len(read_task(path, 1)) == 1
    with pytest.raises(PyskipError, match=re.escape(f"{path}, {said}")):
        read_task(path)


def test_without_the_library(tiny_llm: pyskip.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(PyskipError, match=r"pip install 'pyskip\[eval\]'"):
        evaluate_summaries(tiny_llm, [ARTICLE])


@pytest.mark.slow
def test_json_and_table(cli: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f"{LINE}\n{LINE}\n{LINE}\n")
    flags = ("eval", str(tiny), "--task", str(path), "--skip", "static:3", "-n", "8")
    done = cli(*flags, "--chunks", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    keys = {"skip", "skip_rate", "skip_rates", "ffn_bytes_saved", "rouge_l", "rouge_l_se", "rouge_l_diff"}
    assert [set(row) for row in document["results"]] == [keys | {"attention_skip_rate", "rouge_l_diff_se", "n"}] * 2
    assert [row["n"] for row in document["results"]] == [2, 2]
    assert document["n_ctx"] == 512  # the model's
    done = cli(*flags)
    assert re.match(r"off +0\.0% +0\.0% +0\.\d{4} ± 0\.\d{4} +\+0\.0000 ± 0\.0000$", done.stdout.splitlines()[1])
