"""`pyskip eval --task` with conversations: the dense model's answers, and how far policies are from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import open_llm
from evaluations import Floats, Run, log_softmax

import pyskip
from pyskip.errors import PyskipError
from pyskip.evaluation.conversations import evaluate_conversations
from pyskip.evaluation.journal import Journal
from pyskip.evaluation.tasks import Conversation, read_task
from pyskip.runtime.generation import Generation, chat_tokens

SPECS = ["static:1", "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=3"]
ASKED = Conversation("items.jsonl, line 1", ("Who sold the boat?", "And the lamp?"))
OTHER = Conversation("items.jsonl, line 2", ("Where is the horse?",))


@pytest.fixture(scope="module")
def chat_llm(tiny: Path) -> Iterator[pyskip.Llama]:
    """f32, and a context that one batch decodes."""
    llm = open_llm(tiny, 256, type_k=0, type_v=0, flash_attn=False, logits_all=True)
    yield llm
    llm.close()


def answered(llm: pyskip.Llama, conversation: Conversation, n: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and the dense answers to them, as a chat has them."""
    llm.skip = "off"
    llm.engine.clear()
    llm.reset()
    messages, turns = [], []
    for text in conversation.turns:
        messages.append({"role": "user", "content": text})
        prompt = chat_tokens(llm, messages)
        generation = Generation(llm, prompt, max_tokens=n, temp=0.0, seed=None)
        list(generation)
        messages.append({"role": "assistant", "content": generation.answer().text})
        turns.append((prompt, list(generation.answer().tokens)))
    return turns


def by_steps(llm: pyskip.Llama, prompt: list[int], answer: list[int], spec: str) -> Floats:
    """Log-probabilities of each token of the answer, decoded one by one behind its prompt."""
    llm.skip = spec
    llm.engine.clear()
    llm.reset()
    llm.mark_generated(len(prompt) - 1)
    llm.eval(prompt)
    for token in answer[:-1]:
        llm.eval([token])
    return log_softmax(np.array(llm.scores[len(prompt) - 1 : llm.n_tokens]))


def test_distance_along_the_dense_answers(chat_llm: pyskip.Llama) -> None:
    """Figures are those of single steps behind the same prompts; only answers are skipped."""
    llm, n = chat_llm, 12
    rows = evaluate_conversations(llm, [ASKED], SPECS, n_predict=n)
    assert [row.skip for row in rows] == ["off", *(str(pyskip.parse_skip(spec)) for spec in SPECS)]
    turns = answered(llm, ASKED, n)
    dense = [by_steps(llm, prompt, answer, "off") for prompt, answer in turns]
    for row in rows:
        mine = [by_steps(llm, prompt, answer, row.skip) for prompt, answer in turns]
        kld = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(dense, mine, strict=True)])
        assert row.n_tokens == len(kld) == sum(len(answer) for _, answer in turns)
        assert row.kld_mean == pytest.approx(kld.mean(), rel=1e-3, abs=1e-6)
    assert rows[0].kld_mean == 0
    assert rows[1].kld_mean > 1e-4
    assert rows[2].skip_rate > 0


def test_one_by_one(chat_llm: pyskip.Llama, tmp_path: Path) -> None:
    """A conversation's figures depend on no other, and a run that was cut off goes on."""
    both = evaluate_conversations(chat_llm, [ASKED, OTHER], SPECS, n_predict=8)
    alone = [evaluate_conversations(chat_llm, [c], SPECS, n_predict=8) for c in (ASKED, OTHER)]
    for i, row in enumerate(both):
        n = [rows[i].n_tokens for rows in alone]
        mean = sum(rows[i].kld_mean * k for rows, k in zip(alone, n, strict=True)) / sum(n)
        assert row.kld_mean == pytest.approx(mean)
    path = tmp_path / "journal.jsonl"
    evaluate_conversations(chat_llm, [ASKED], SPECS[:1], n_predict=8, journal=Journal(path))
    assert evaluate_conversations(chat_llm, [ASKED, OTHER], SPECS, n_predict=8, journal=Journal(path)) == both


def test_refused(chat_llm: pyskip.Llama, tmp_path: Path) -> None:
    with pytest.raises(PyskipError, match="no conversations"):
        evaluate_conversations(chat_llm, [])
    with pytest.raises(PyskipError, match=r"do not fit a context of 256: raise --ctx or lower -n"):
        evaluate_conversations(chat_llm, [ASKED], n_predict=255)
    path = tmp_path / "turns.jsonl"
    for line in ('{"turns": []}', '{"turns": "a"}', '{"turns": ["a", 3]}', '{"turns": [" "]}'):
        path.write_text(line)
        with pytest.raises(PyskipError, match=r'line 1: "turns'):
            read_task(path)


def test_on_the_command_line(cli: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    lines = [{"question_id": 1, "turns": list(ASKED.turns)}, {"turns": list(OTHER.turns)}]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = cli("eval", str(tiny), "--task", str(path), "--skip", "static:1", "-c", "256", "-n", "8", "--json")
    assert done.returncode == 0, done.stderr
    dense, skipped = json.loads(done.stdout)["results"]
    assert (dense["kld_mean"], dense["same_top"]) == (0, 1)
    assert skipped["n_tokens"] == dense["n_tokens"] > 8
    assert skipped["kld_mean"] > 0
