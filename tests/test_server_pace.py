"""pyskip serve --target-tps, and target_tps in a request: a pace for each sequence. What its controller does with time
is tested natively (native/tests/test-pace.cpp) and in tests/test_pace.py; here it is what it decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Running, running

pytestmark = pytest.mark.loopback

PROMPT = "One, two, three, four, five, six, seven, eight, nine, ten, eleven,"
BEYOND, BELOW = 1e6, 1e-3  # tokens/s that no machine reaches, that every one does


@pytest.fixture(scope="module")
def server(demo: Path) -> Iterator[Running]:
    with running(str(demo), "-c", "4096", "--skip", "off") as server:
        yield server


def complete(server: Running, **more: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "n_predict": 200, "temperature": 0, "ignore_eos": True, **more}
    answer = server.post("/completion", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until_short(server: Running, n_behind: int = 0, **more: Any) -> list[dict[str, Any]]:
    """What each chunk says of the pace, until it is at its end and n_behind chunks longer."""
    body = {"prompt": PROMPT, "n_predict": 4000, "temperature": 0, "ignore_eos": True, **more}
    body |= {"stream": True, "timings_per_token": True}
    told: list[dict[str, Any]] = []
    n_short = 0
    with server.client.stream("POST", server.url + "/completion", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                timings = json.loads(line.removeprefix("data: "))["timings"]
                told.append({**timings["pace"], "skip_rate": timings["skip_rate"]})
                n_short += told[-1]["is_short"]
                if n_short > n_behind:
                    break
    return told


def test_a_target_beyond_reach_skips_what_it_may(server: Running) -> None:
    told = until_short(server, target_tps=BEYOND, max_skip=0.4)
    assert (told[0]["rate"], told[0]["floor"], told[0]["skip_rate"]) == (0, 0, 0)
    assert (told[-1]["rate"], told[-1]["max_skip"], told[-1]["held"]) == (0.4, 0.4, 0)
    assert [one["rate"] for one in told] == sorted(one["rate"] for one in told)
    assert told[-1]["skip_rate"] > 0
    assert all(one["seconds"] == 0 for one in told[:17])  # the prompt and the warm-up


def test_a_target_far_below_is_dense(server: Running) -> None:
    # a prompt of which the last token alone is decoded again rounds otherwise than one that is decoded whole
    dense = complete(server, skip="off", cache_prompt=False)
    paced = complete(server, target_tps=BELOW, cache_prompt=False)
    assert paced["content"] == dense["content"]
    assert paced["timings"]["skip_rate"] == 0
    pace = paced["timings"]["pace"]
    assert (pace["held"], pace["rate"], pace["is_short"]) == (1, 0, False)
    assert pace["seconds"] > 0
    assert "pace" not in dense["timings"]


def test_one_for_each_sequence(server: Running) -> None:
    """In the same batches."""
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(complete, server, target_tps=BELOW, n_predict=300)
        fast = pool.submit(until_short, server, n_behind=64, target_tps=BEYOND)  # it may be at its end at once
        assert fast.result()[-1]["skip_rate"] > 0
        assert slow.result()["timings"]["skip_rate"] == 0
    assert complete(server, n_predict=4)["timings"]["skip_rate"] == 0  # and nothing of it is left behind


def test_by_the_command_line(demo: Path) -> None:
    with running(str(demo), "-c", "4096", "--target-tps", str(BEYOND), "--max-skip", "0.3") as server:
        assert server.get("/pyskip/models").json()["data"][0]["target_tps"] == BEYOND
        assert until_short(server)[-1]["rate"] == 0.3
        assert until_short(server, max_skip=0.2)[-1]["rate"] == 0.2
        below = complete(server, target_tps=BELOW, n_predict=40)["timings"]
        assert (below["pace"]["max_skip"], below["skip_rate"]) == (0.3, 0)
        assert "pace" not in complete(server, skip=0.1, n_predict=4)["timings"]  # who names a policy gets that
        message = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
        assert server.post("/v1/chat/completions", message).json()["usage"]["pace"]["target_tps"] == BEYOND
    with running(str(demo), "-c", "1024", "--target-tps", "20", "--skip", "0.1") as server:
        pace = complete(server, n_predict=4)["timings"]["pace"]
        assert pace["floor"] == 0.1
        assert 0.2 < pace["max_skip"] < 0.25  # the recommended rate


def test_what_was_generated_at_a_pace_is_not_used_as_a_prompt(server: Running) -> None:
    """It was decided at rates that come and go."""
    skip = "profile:rate=0.1,hold=0,prefill=1,warmup=0"
    tokens = server.post("/tokenize", {"content": PROMPT}).json()["tokens"]
    for pace, is_used in (({}, True), ({"target_tps": BELOW}, False)):
        first = complete(server, prompt=tokens, skip=skip, n_predict=20, return_tokens=True, id_slot=0, **pace)
        longer = [*tokens, *first["tokens"], *tokens]
        again = complete(server, prompt=longer, skip=skip, n_predict=1, id_slot=0)
        assert (again["timings"]["cache_n"] > len(tokens)) == is_used
        complete(server, prompt=tokens[::-1], skip="off", n_predict=1, id_slot=0)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"target_tps": 0}, "target_tps", "expected tokens/s above 0"),
        ({"target_tps": -1}, "target_tps", "expected tokens/s above 0"),
        ({"target_tps": "fast"}, "target_tps", "target_tps is no number"),
        ({"max_skip": 0.3}, "max_skip", "no target_tps"),
        ({"target_tps": 20, "max_skip": "much"}, "max_skip", "max_skip is no number"),
        ({"target_tps": 20, "max_skip": -0.5}, "max_skip", "expected a rate above 0"),
        ({"target_tps": 20, "max_skip": 0.99}, "max_skip", "beyond the profile's curve"),
        ({"target_tps": 20, "max_skip": 0.2, "skip": 0.3}, "max_skip", "above 0.3"),
        ({"target_tps": 20, "skip": "static:5"}, "skip", "expected off or a rate"),
        ({"target_tps": 20, "skip": "profile:error=0.1"}, "skip", "expected off or a rate"),
    ],
)
def test_mistakes_of_a_request(server: Running, fields: dict[str, Any], param: str, words: str) -> None:
    message = {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
    bodies: dict[str, dict[str, Any]] = {"/completion": {"prompt": "a"}, "/v1/messages": message}
    for path, body in bodies.items():
        answer = server.post(path, {**body, **fields})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
        assert answer.json()["error"].get("param", param) == param


def test_mistakes_of_the_command_line(tiny: Path, demo: Path, cli: Any) -> None:
    for model, flags, status, words in (
        (tiny, ("--target-tps", "20"), 1, "target_tps needs a profile"),
        (demo, ("--max-skip", "0.2"), 2, "no --target-tps"),
        (demo, ("--target-tps", "20", "--skip", "static:5"), 1, "expected off or a rate"),
        (demo, ("--target-tps", "20", "--max-skip", "0.99"), 1, "beyond the profile's curve"),
        (demo, ("--target-tps", "20", "--skip", "0.3"), 1, "max_skip is 0.23"),
    ):
        done = cli("serve", str(model), "--port", "0", "-c", "64", *flags)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
