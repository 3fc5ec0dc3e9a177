"""Summaries of articles, scored by ROUGE-L: what a policy costs where the model writes. Used by `pyskip eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PyskipError
from ..policy import Off, Policy
from ..runtime.decoding import distinct
from ..runtime.generation import Generation, chat_tokens
from ..runtime.llama import Llama
from .evaluate import Progress
from .journal import Journal, Record
from .results import journal_key, paired_fields, skip_fields
from .tasks import Article

__all__ = ["SummaryResult", "evaluate_summaries"]

INSTRUCTION = "Summarize the article in three sentences.\n\n"
CUE = "\n\nTL;DR:"  # for a model without a chat template


@dataclass(frozen=True)
class SummaryResult:
    """A policy on articles. SE: one standard error, NaN for a single article. The difference's is that of pairs."""

    skip: str
    skip_rate: float  # of generated tokens
    skip_rates: tuple[float, ...]
    ffn_bytes_saved: float
    attention_skip_rate: float
    rouge_l: float  # F1, 0 to 1
    rouge_l_se: float
    rouge_l_diff: float  # to dense
    rouge_l_diff_se: float
    n: int  # articles


def evaluate_summaries(
    llm: Llama,
    articles: Sequence[Article],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_predict: int = 96,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[SummaryResult]:
    """ROUGE-L F1 of greedily decoded summaries against the highlights.

    The article is a prompt: an instruction by the model's chat template, or if it has none the article and "TL;DR:".
    It is cut at its end to what the context holds beside n_predict tokens. Only what is generated counts as generated.

    llm: its context is used whole. What it holds is forgotten, its policy kept.
    skips, journal, progress, result and errors as for pyskip.evaluation.evaluate_text().
    """
    if not articles:
        raise PyskipError("the task has no articles, expected at least one")
    rouge_l, journal = _rouge_l(), journal or Journal()
    prompts = [_prompt(llm, article, n_predict) for article in articles]
    with distinct(llm, skips) as policies:
        keys = {policy: journal_key(llm, policy) for policy in policies}
        writer = _Writer(llm, n_predict)
        for i, (article, prompt) in enumerate(zip(articles, prompts, strict=True)):
            for policy in policies:
                if (keys[policy], i) not in journal:
                    text, n_tokens, by_layer = writer.write(prompt, policy)
                    figures = np.array([[rouge_l(article.highlights, text)]])
                    journal.put(keys[policy], i, Record(n_tokens, by_layer, figures))
            if progress is not None:
                progress(i + 1, len(articles), paired_fields(journal, keys[policies[-1]], i + 1)[0])
        n = len(articles)
        return [
            SummaryResult(*skip_fields(llm, policy, journal.records(key, n)), *paired_fields(journal, key, n), n)
            for policy, key in keys.items()
        ]


def _rouge_l() -> Callable[[str, str], float]:
    """The F1 of (reference, summary). Raises PyskipError if the library is missing."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as missing:
        raise PyskipError(
            f"articles are scored by rouge-score, which is not installed (no module {missing.name}): "
            "pip install 'pyskip[eval]'"
        ) from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, summary: float(scorer.score(reference, summary)["rougeL"].fmeasure)


def _prompt(llm: Llama, article: Article, n_predict: int) -> list[int]:
    """Its tokens, the article cut to what the context holds."""
    room, text = llm.n_ctx() - n_predict, article.text.encode()
    tokens = llm.tokenize(text, add_bos=False, special=False)
    n_kept = len(tokens)
    prompt = _asked(llm, article.text)
    while len(prompt) > room:
        n_kept -= len(prompt) - room
        if n_kept <= 0:
            raise PyskipError(
                f"{article.where}: a context of {llm.n_ctx()} tokens has no room for an article beside a summary of "
                f"{n_predict}: raise --ctx or lower -n"
            )
        kept = text[: len(text) - len(llm.detokenize(tokens[n_kept:]))]
        prompt = _asked(llm, kept.decode("utf-8", "ignore"))
    return prompt


def _asked(llm: Llama, text: str) -> list[int]:
    if "tokenizer.chat_template" in llm.metadata:
        return chat_tokens(llm, [{"role": "user", "content": INSTRUCTION + text}])
    return list(llm.tokenize((text + CUE).encode(), add_bos=True, special=False))


class _Writer:
    """Writes summaries of one prompt under one policy after another. All but the prompt's last token is decoded in
    batches, and kept for the policies that decode it alike; the same tokens form a batch whichever come first."""

    def __init__(self, llm: Llama, n_predict: int) -> None:
        self._llm, self._n_predict = llm, n_predict
        self._held: tuple[list[int], Policy] | None = None

    def write(self, prompt: list[int], policy: Policy) -> tuple[str, int, np.ndarray]:
        """The summary, tokens generated and decoded, and what was skipped for them: [2*n_layer] FFNs, attention."""
        llm, last = self._llm, len(prompt) - 1
        wanted = prompt, Off() if policy.shares_prompt else policy
        if self._held != wanted or not llm.engine.cut(last):
            llm.reset()
            llm.skip = wanted[1]
            llm.eval(prompt[:last])
        self._held = wanted
        llm.n_tokens = last
        llm.skip = policy
        generation = Generation(llm, prompt, max_tokens=self._n_predict, temp=0.0, seed=None)
        for _ in generation:
            pass
        answer = generation.answer()
        skipped = np.array([*answer.skip.skipped, *answer.skip.attention_skipped], np.int64)
        return answer.text, answer.skip.n_tokens, skipped
