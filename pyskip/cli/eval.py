"""`pyskip eval`: what a policy costs in quality, on a text, on a task or on articles to be summarised."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import ui
from .options import kernels_option

if TYPE_CHECKING:
    from pyskip.evaluation import TaskResult, TextResult
    from pyskip.evaluation.journal import Journal
    from pyskip.evaluation.summaries import SummaryResult
    from pyskip.evaluation.tasks import Line
    from pyskip.runtime.llama import Llama

    Result = TextResult | TaskResult | SummaryResult
    Content = str | Sequence[Line]

__all__ = ["eval"]

COUNT = click.IntRange(1, 2**31 - 1)
N_CTX = {"text": 512, "items": 512, "articles": 2048, "conversations": 2048}
FIGURE = {
    "text": "windows, ppl / dense",
    "items": "items, accuracy",
    "articles": "articles, ROUGE-L",
    "conversations": "conversations, ppl / dense",
}
WRITTEN = ("articles", "conversations")  # the model writes
N_BATCH = 512  # if nothing but the prompt's end is scored


@click.command()
@click.argument("model")
@click.option("--text", metavar="FILE", help="UTF-8 text: perplexity, and the distance from dense.")
@click.option(
    "--task", metavar="FILE.jsonl", help="Task items, one JSON object a line: accuracy, ROUGE-L, or distance."
)
@click.option("--skip", "skips", multiple=True, metavar="SPEC", help="A policy; may be given several times.")
@click.option("--chunks", type=COUNT, metavar="N", help="Windows of the text, or items of the task, at most.")
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=click.IntRange(8, 2**31 - 1),
    metavar="N",
    help="Window in tokens. [default: 512, for articles and conversations 2048]",
)
@click.option(
    "-n",
    "n_predict",
    type=COUNT,
    default=96,
    show_default=True,
    metavar="N",
    help="Tokens of what it writes, at most.",
)
@click.option(
    "-t", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Threads. [default: the physical cores]"
)
@click.option("--profile", metavar="FILE", help="Profile to use instead of the one beside the model.")
@kernels_option
@click.option("--resume", metavar="FILE", help="Keep what was scored in this file, and compute only what it lacks.")
@click.option(
    "--ray", "on_ray", is_flag=True, help="Spread the work over a Ray cluster, workers of -t threads (pyskip[ray])."
)
@click.option("--no-dense", is_flag=True, help="Of a text: perplexities only, without the dense pass to compare with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def eval(
    model: str,
    text: str | None,
    task: str | None,
    skips: tuple[str, ...],
    chunks: int | None,
    n_ctx: int | None,
    n_predict: int,
    n_threads: int | None,
    profile: str | None,
    kernels: str,
    resume: str | None,
    on_ray: bool,
    no_dense: bool,
    as_json: bool,
) -> None:
    """Measure what policies cost MODEL in quality.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. Dense is the first row, asked for or not.
    """
    path = text if text is not None else task
    if path is None or (text is not None and task is not None):
        raise click.UsageError("Give either --text or --task.", click.get_current_context())
    if no_dense and task is not None:
        raise click.UsageError("--no-dense goes with --text only.", click.get_current_context())
    from pyskip.evaluation.tasks import NAMES, read_task, read_text
    from pyskip.policy import parse_skip
    from pyskip.runtime.llama import Llama

    for spec in skips:
        parse_skip(spec)  # these, and the file, before a model is loaded
    start = time.monotonic()
    content = read_task(path, chunks) if text is None else read_text(path)
    kind = "text" if isinstance(content, str) else NAMES[type(content[0])]
    path_of_model, arguments = _arguments(model, kind, n_ctx, n_threads, profile, kernels)
    llm = ui.in_thread(lambda: Llama(path_of_model, verbose=False, **arguments))
    journal = _journal(resume, llm, kind, path, {"n_predict": n_predict} if kind in WRITTEN else {})
    if on_ray:
        _score_on_ray(model, arguments, llm, content, skips, chunks, n_predict, not no_dense, journal)
    with ui.progress_line() as show:
        given: dict[str, Any] = {"journal": journal, "progress": _shown(show, FIGURE[kind])}
        if no_dense:
            given |= {"dense": False, "progress": _shown(show, "windows, ppl")}
        results = ui.in_thread(lambda: _evaluate(llm, content, skips, chunks, n_predict, given))
    if as_json:
        _print_json(results, model, {"text": text} if task is None else {"task": task}, llm, time.monotonic() - start)
    else:
        _print_table(results)


def _arguments(
    model: str, kind: str, n_ctx: int | None, n_threads: int | None, profile: str | None, kernels: str
) -> tuple[Path, dict[str, Any]]:
    """The model's file, and what Llama takes beside it: one batch for a whole window."""
    from pyskip.errors import PyskipError
    from pyskip.models.gguf_info import inspect

    path = ui.resolve(model)
    info = inspect(path)
    n_ctx = n_ctx or min(N_CTX[kind], info.n_ctx_train or N_CTX[kind])
    if 0 < info.n_positions < n_ctx:
        raise PyskipError(f"{path}: has {info.n_positions} positions, expected {n_ctx}: use --ctx {info.n_positions}")
    n_batch = min(n_ctx, N_BATCH) if kind == "articles" else n_ctx
    sizes: dict[str, Any] = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_batch}
    threads: dict[str, Any] = {"n_threads": n_threads, "n_threads_batch": n_threads}
    chosen: dict[str, Any] = {"kernels": kernels} if profile is None else {"kernels": kernels, "profile": profile}
    return path, {**sizes, **threads, **chosen}


def _score_on_ray(
    model: str,
    arguments: dict[str, Any],
    llm: Llama,
    content: Content,
    skips: Sequence[str],
    chunks: int | None,
    n_predict: int,
    dense: bool,
    journal: Journal,
) -> None:
    """What the journal lacks, so that nothing is left to be computed here."""
    from pyskip.evaluation import arm_names, windows_of
    from pyskip.ray.cluster import connected
    from pyskip.ray.evaluation import Evaluation, score_on
    from pyskip.ray.worker import WorkerModel
    from pyskip.runtime.decoding import distinct

    with distinct(llm, skips) as policies:
        arms = arm_names(llm, policies, skips, dense=dense)
    items = windows_of(llm, content, llm.n_ctx())[:chunks] if isinstance(content, str) else content
    n_threads = llm.n_threads_batch
    alike = tuple({**arguments, "n_threads": n_threads, "n_threads_batch": n_threads}.items())
    of_workers = WorkerModel(model, llm.engine.info.fingerprint, alike)
    told = Evaluation(of_workers, n_threads, tuple(skips), dense, n_predict)
    with connected() as ray, ui.progress_line() as show:
        score_on(ray, told, items, arms, journal, lambda done, total: show(done, total, " on Ray"))


def _journal(resume: str | None, llm: Llama, kind: str, path: str, more: dict[str, int]) -> Journal:
    """What was scored already, of the same file by the same model and build."""
    from pyskip.binding.library import BUILD
    from pyskip.evaluation.journal import Journal

    if resume is None:
        return Journal()
    header: dict[str, str | int] = {
        "kind": kind,
        "file_name": Path(path).name,
        "file_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "model_name": Path(llm.model_path).name,
        "model": llm.engine.info.fingerprint,
        "n_ctx": llm.n_ctx(),
        "kernels": llm.kernels,
        **more,
        "build": BUILD,
    }
    return Journal(resume, header)


def _evaluate(
    llm: Llama,
    content: Content,
    skips: Sequence[str],
    chunks: int | None,
    n_predict: int,
    given: dict[str, Any],
) -> Sequence[Result]:
    from pyskip.evaluation import evaluate_task, evaluate_text
    from pyskip.evaluation.conversations import evaluate_conversations
    from pyskip.evaluation.summaries import evaluate_summaries
    from pyskip.evaluation.tasks import Article, Conversation, TaskItem

    if isinstance(content, str):
        return evaluate_text(llm, content, skips, n_ctx=llm.n_ctx(), chunks=chunks, **given)
    articles = [item for item in content if isinstance(item, Article)]
    if articles:
        return evaluate_summaries(llm, articles, skips, n_predict=n_predict, **given)
    conversations = [item for item in content if isinstance(item, Conversation)]
    if conversations:
        return evaluate_conversations(llm, conversations, skips, n_predict=n_predict, **given)
    items = [item for item in content if isinstance(item, TaskItem)]
    return evaluate_task(llm, items, skips, n_ctx=llm.n_ctx(), **given)


def _shown(show: Callable[[int, int, str], None], words: str) -> Callable[[int, int, float], None]:
    return lambda done, total, value: show(done, total, f" {words} {value:.4f}")


def _print_json(
    results: Sequence[Result], model: str, source: dict[str, str | None], llm: Llama, seconds: float
) -> None:
    from pyskip.binding.library import BUILD

    document = {
        "results": [
            {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row}
            for row in (asdict(result).items() for result in results)
        ],
        "model": model,
        **source,
        "n_ctx": llm.n_ctx(),
        "n_threads": llm.n_threads_batch,
        "seconds": round(seconds, 1),
        "build": BUILD,
    }
    click.echo(json.dumps(document))


def _cells(result: Result) -> dict[str, str]:
    """A row of the table, by column."""
    from pyskip.evaluation import TaskResult, TextResult

    cells = {
        "skip": result.skip,
        "skipped": f"{result.skip_rate:.1%}",
        "attention": f"{result.attention_skip_rate:.1%}",
        "FFN bytes saved": f"{result.ffn_bytes_saved:.1%}",
    }
    if isinstance(result, TextResult):
        cells["ppl"] = f"{result.ppl:.3f} ± {result.ppl_se:.3f}"
        if math.isnan(result.kld_mean):  # without the dense pass
            return cells
        return {
            **cells,
            "ppl / dense": f"{result.ppl_ratio:.4f} ± {result.ppl_ratio_se:.4f}",
            "KLD": f"{result.kld_mean:.4f}",
            "KLD 99 %": f"{result.kld_p99:.3f}",
            "same top": f"{result.same_top:.1%}",
        }
    if isinstance(result, TaskResult):
        return {
            **cells,
            "accuracy": f"{result.accuracy:.1%} ± {result.accuracy_se:.1%}",
            "accuracy - dense": f"{result.accuracy_diff:+.1%} ± {result.accuracy_diff_se:.1%}",
        }
    return {
        **cells,
        "ROUGE-L": f"{result.rouge_l:.4f} ± {result.rouge_l_se:.4f}",
        "ROUGE-L - dense": f"{result.rouge_l_diff:+.4f} ± {result.rouge_l_diff_se:.4f}",
    }


def _print_table(results: Sequence[Result]) -> None:
    """Columns aligned by blanks; the first to the left, figures to the right."""
    cells = [_cells(result) for result in results]
    if not any(result.attention_skip_rate for result in results):
        for cell in cells:
            del cell["attention"]
    rows = [tuple(cells[0]), *(tuple(row.values()) for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        figures = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        click.echo("  ".join((row[0].ljust(widths[0]), *figures)))
