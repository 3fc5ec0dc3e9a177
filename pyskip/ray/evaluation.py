"""`pyskip eval --ray`: windows and items of an evaluation, each scored by some worker of a Ray cluster. What they
score goes into the evaluation's journal, from which it goes on as if it had taken it up (--resume): the figures are
those of one process. Ray starts the workers, spreads the work, and repeats what was lost with one that died."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation import evaluate_task, evaluate_windows
from ..evaluation.conversations import evaluate_conversations
from ..evaluation.journal import Journal, Record
from ..evaluation.summaries import evaluate_summaries
from ..evaluation.tasks import Article, Conversation, Line, TaskItem
from .cluster import n_workers, outcome
from .worker import WorkerModel, loaded

__all__ = ["Evaluation", "score_on"]

Item = Sequence[int] | Line  # a window is its tokens


@dataclass(frozen=True)
class Evaluation:
    """What a worker has to know of it."""

    model: WorkerModel
    n_threads: int  # of a worker, and cores that Ray gives it
    skips: tuple[str, ...]
    dense: bool
    n_predict: int


def score_on(
    ray: Any,
    evaluation: Evaluation,
    items: Sequence[Item],
    arms: Sequence[str],
    journal: Journal,
    progress: Callable[[int, int], None],
) -> None:
    """Put into the journal what it lacks of these items under these arms.

    ray: connected. progress: called with items that are there, and how many there are.

    Raises PyskipError for what a worker raised.
    """
    missing = [i for i in range(len(items)) if any((arm, i) not in journal for arm in arms)]
    task = ray.remote(num_cpus=evaluation.n_threads, max_retries=-1)(score)
    told, most = ray.put(evaluation), 2 * n_workers(ray, evaluation.n_threads)
    waiting: dict[Any, int] = {}
    for done in range(len(items) - len(missing), len(items)):
        while missing and len(waiting) < most:
            i = missing.pop(0)
            waiting[task.remote(told, items[i])] = i
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        i = waiting.pop(ready)
        for arm, record in outcome(ray, ready).items():
            journal.put(arm, i, record)
        progress(done + 1, len(items))


def score(evaluation: Evaluation, item: Item) -> dict[str, Record]:
    """In a worker: the records of one item, by arm."""
    llm, journal = loaded(evaluation.model), Journal()
    if isinstance(item, TaskItem):
        evaluate_task(llm, [item], evaluation.skips, n_ctx=llm.n_ctx(), journal=journal)
    elif isinstance(item, Article):
        evaluate_summaries(llm, [item], evaluation.skips, n_predict=evaluation.n_predict, journal=journal)
    elif isinstance(item, Conversation):
        evaluate_conversations(llm, [item], evaluation.skips, n_predict=evaluation.n_predict, journal=journal)
    else:
        evaluate_windows(llm, [item], evaluation.skips, n_ctx=llm.n_ctx(), dense=evaluation.dense, journal=journal)
    return journal.arms(0)
