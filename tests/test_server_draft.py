"""Speculative decoding under a policy: what a draft proposes and the model rejects leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import make_profile, make_random
from serving import ALTERNATE, Running, running

pytestmark = [pytest.mark.loopback, pytest.mark.slow]

EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-cache-prompt", "--parallel", "1")
LONGER = ("--override-kv", "llama.context_length=int:1024")
SKIPS = (
    "off",
    "static:1,3",
    ALTERNATE,
    0.4,
    "profile:rate=0.3,hold=0,warmup=2",
    "cosine:threshold=0.5,cold_start=1,cold_end=1",
)
SIMPLE = ("--spec-type", "draft-simple", "--spec-draft-n-max", "5")
REPEATED = " ".join(f"w{i % 7 + 1}" for i in range(70))


@dataclass
class Served:
    server: Running
    draft: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft") / "one.gguf"
    make_random.make(path, make_random.SHAPES["tiny"])
    make_profile.make_profile(path, path.with_name("one.skip.gguf"))
    return path


@pytest.fixture(scope="module")
def drafts(model: Path) -> Iterator[dict[str, Running]]:
    """Without a draft, with one that is right if nothing is skipped, one that never is, by n-grams, and by itself."""
    wrong = model.with_name("wrong.gguf")
    make_random.make(wrong, make_random.SHAPES["tiny"], seed=7)
    by = {
        "none": (),
        "right": ("-md", str(model), *SIMPLE),
        "wrong": ("-md", str(wrong), *SIMPLE),
        "itself": ("--lossless", "always"),
        "ngram": ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "9"),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running(str(model), "-c", "1024", "--skip", "off", "--", *LONGER, *EXACT, *flags))
            for name, flags in by.items()
        }


def blocks(server: Running) -> list[float]:
    """What was counted so far, by layer and outcome."""
    return [
        server.metric(f'pyskip_ffn_blocks_total{{model="one",layer="{il}",outcome="{outcome}"}}')
        for il in range(6)
        for outcome in ("evaluated", "skipped")
    ]


@pytest.mark.parametrize("skip", SKIPS)
def test_a_draft_changes_nothing(drafts: dict[str, Running], skip: Any) -> None:
    body = {"prompt": REPEATED, "n_predict": 60, "temperature": 0, "skip": skip, "skip_trace": True, "ignore_eos": True}
    told: dict[str, tuple[Any, ...]] = {}
    n_drafted, n_accepted = 0, 0
    for name, server in drafts.items():
        before = blocks(server)
        answer = server.post("/completion", body).json()
        counted = [after - start for start, after in zip(before, blocks(server), strict=True)]
        told[name] = (answer["content"], answer["skip_trace"], answer["timings"]["skip_rate"], counted)
        n_drafted += answer["timings"].get("draft_n", 0)
        n_accepted += answer["timings"].get("draft_n_accepted", 0)
        assert ("draft_n" in answer["timings"]) or name in ("none", "ngram")
    for name in drafts:
        assert told[name] == told["none"], name
    assert 0 < n_accepted < n_drafted
