"""What a policy costs in quality: perplexity and KL divergence on text, accuracy on tasks, ROUGE-L of summaries."""

from __future__ import annotations

from .evaluate import (
    Progress,
    Scores,
    TaskResult,
    TextResult,
    arm_names,
    evaluate_task,
    evaluate_text,
    evaluate_windows,
    ffn_bytes_saved,
    journal_key,
    paired_fields,
    score,
    skip_fields,
    windows_of,
)

__all__ = [
    "Progress",
    "Scores",
    "TaskResult",
    "TextResult",
    "arm_names",
    "evaluate_task",
    "evaluate_text",
    "evaluate_windows",
    "ffn_bytes_saved",
    "journal_key",
    "paired_fields",
    "score",
    "skip_fields",
    "windows_of",
]
