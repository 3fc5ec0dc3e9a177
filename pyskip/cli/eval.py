"""`pyskip eval`: what a policy costs in quality, on a text or on a task."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from . import ui

if TYPE_CHECKING:
    from pyskip.evaluation import TaskResult, TextResult
    from pyskip.llama import Llama

__all__ = ["eval"]

COUNT = click.IntRange(1, 2**31 - 1)
TEXT_COLUMNS = ("skip", "skipped", "FFN bytes saved", "ppl", "ppl / dense", "KLD", "KLD 99 %", "same top")
TASK_COLUMNS = ("skip", "skipped", "FFN bytes saved", "accuracy", "accuracy - dense")


@click.command()
@click.argument("model")
@click.option("--text", metavar="FILE", help="UTF-8 text: perplexity, and the distance from dense.")
@click.option("--task", metavar="FILE.jsonl", help="Task items, one JSON object a line: accuracy.")
@click.option("--skip", "skips", multiple=True, metavar="SPEC", help="A policy; may be given several times.")
@click.option("--chunks", type=COUNT, metavar="N", help="Windows of the text, or items of the task, at most.")
@click.option(
    "-c", "--ctx", "n_ctx", type=click.IntRange(8, 2**31 - 1), metavar="N", help="Window in tokens. [default: 512]"
)
@click.option(
    "-t", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Threads. [default: the physical cores]"
)
@click.option("--profile", metavar="FILE", help="Profile to use instead of the one beside the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def eval(
    model: str,
    text: str | None,
    task: str | None,
    skips: tuple[str, ...],
    chunks: int | None,
    n_ctx: int | None,
    n_threads: int | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """Measure what policies cost MODEL (a path, or demo) in quality. Dense is the first row, asked for or not."""
    if (text is None) == (task is None):
        raise click.UsageError("Give either --text or --task.", click.get_current_context())
    from pyskip.evaluation import evaluate_task, evaluate_text
    from pyskip.policy import parse_skip
    from pyskip.tasks import read_task, read_text

    for spec in skips:
        parse_skip(spec)  # these, and the file, before a model is loaded
    start = time.monotonic()
    results: Sequence[TextResult | TaskResult]
    with ui.progress_line() as show:
        if text is not None:
            content = read_text(text)
            llm = _load(model, n_ctx, n_threads, profile)
            n_ctx = llm.n_ctx()
            on_text = _shown(show, "windows, ppl / dense")
            results = ui.in_thread(
                lambda: evaluate_text(llm, content, skips, n_ctx=llm.n_ctx(), chunks=chunks, progress=on_text)
            )
        else:
            items = read_task(str(task), chunks)
            llm = _load(model, n_ctx, n_threads, profile)
            on_task = _shown(show, "items, accuracy")
            results = ui.in_thread(lambda: evaluate_task(llm, items, skips, n_ctx=llm.n_ctx(), progress=on_task))
    if as_json:
        _print_json(results, model, text, task, llm, time.monotonic() - start)
    elif text is not None:
        _print_table(TEXT_COLUMNS, [_text_row(result) for result in results])  # type: ignore[arg-type]
    else:
        _print_table(TASK_COLUMNS, [_task_row(result) for result in results])  # type: ignore[arg-type]


def _load(model: str, n_ctx: int | None, n_threads: int | None, profile: str | None) -> Llama:
    """With one batch for a whole window."""
    from pyskip.gguf_info import inspect
    from pyskip.llama import Llama
    from pyskip.models import resolve

    path = resolve(model)
    n_ctx = n_ctx or min(512, inspect(path).n_ctx_train or 512)
    sizes: dict[str, Any] = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": n_ctx}
    threads: dict[str, Any] = {"n_threads": n_threads, "n_threads_batch": n_threads}
    chosen: dict[str, Any] = {} if profile is None else {"profile": profile}
    return ui.in_thread(lambda: Llama(path, verbose=False, **sizes, **threads, **chosen))


def _shown(show: Callable[[int, int, str], None], words: str) -> Callable[[int, int, float], None]:
    return lambda done, total, value: show(done, total, f" {words} {value:.4f}")


def _print_json(
    results: Sequence[TextResult | TaskResult],
    model: str,
    text: str | None,
    task: str | None,
    llm: Llama,
    seconds: float,
) -> None:
    from pyskip._library import BUILD

    document = {
        "results": [
            {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row}
            for row in (asdict(result).items() for result in results)
        ],
        "model": model,
        **({"text": text} if task is None else {"task": task}),
        "n_ctx": llm.n_ctx(),
        "n_threads": llm.n_threads_batch,
        "seconds": round(seconds, 1),
        "build": BUILD,
    }
    click.echo(json.dumps(document))


def _text_row(result: TextResult) -> tuple[str, ...]:
    return (
        result.skip,
        f"{result.skip_rate:.1%}",
        f"{result.ffn_bytes_saved:.1%}",
        f"{result.ppl:.3f} ± {result.ppl_se:.3f}",
        f"{result.ppl_ratio:.4f} ± {result.ppl_ratio_se:.4f}",
        f"{result.kld_mean:.4f}",
        f"{result.kld_p99:.3f}",
        f"{result.same_top:.1%}",
    )


def _task_row(result: TaskResult) -> tuple[str, ...]:
    return (
        result.skip,
        f"{result.skip_rate:.1%}",
        f"{result.ffn_bytes_saved:.1%}",
        f"{result.accuracy:.1%} ± {result.accuracy_se:.1%}",
        f"{result.accuracy_diff:+.1%} ± {result.accuracy_diff_se:.1%}",
    )


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns aligned by blanks; the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        click.echo("  ".join((row[0].ljust(widths[0]), *figures)))
