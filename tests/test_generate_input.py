"""`pyskip generate --input`: a file of requests, answered by a server many at a time, and taken up where it was
left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluations import Run, refused
from serving import running

from pyskip.errors import PyskipError
from pyskip.server.batch import Request, answer_all, read_requests

MESSAGES = [{"role": "user", "content": "w1 w2"}]
LINES: list[dict[str, Any]] = [
    {"prompt": "w1 w2", "max_tokens": 3},
    {"messages": MESSAGES, "custom_id": "chat", "skip": "static:2"},
    {
        "custom_id": "batch",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": MESSAGES, "max_tokens": 2},
    },
    {"prompt": "w3", "skip": "most"},
    *({"prompt": f"w{i} w{i + 1}"} for i in range(20)),
]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def read(path: Path) -> dict[str, Any]:
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    found = {answer["custom_id"]: answer for answer in answers}
    assert len(found) == len(answers)
    return found


def test_requests_of_a_file(tmp_path: Path) -> None:
    requests = read_requests(write(tmp_path / "in", LINES[:3]), {"max_tokens": 9, "seed": None})
    assert [(request.custom_id, request.path) for request in requests] == [
        ("1", "/v1/completions"), ("chat", "/v1/chat/completions"), ("batch", "/v1/chat/completions"),
    ]  # fmt: skip
    assert [request.body["max_tokens"] for request in requests] == [3, 9, 2]
    assert requests[1].body["skip"] == "static:2"
    assert "custom_id" not in requests[1].body


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "empty, expected requests"),
        (["text"], "line 1: a JSON str, expected an object"),
        ([{"prompt": "a"}, {"text": "b"}], 'line 3: found neither "prompt" nor "messages"'),
        ([{"body": 7}], 'line 1: found neither "prompt"'),
        ([{"url": "/v1/responses", "body": 7}], 'line 1: found neither "prompt"'),
        ([{"url": 7, "body": {"prompt": "a"}}], 'line 1: "url" is'),
        ([{"url": "http://elsewhere.test/", "body": {"prompt": "a"}}], 'line 1: "url" is'),
        ([{"prompt": "a", "custom_id": "x"}] * 2, "line 3: another request is named 'x'"),
    ],
)
def test_what_is_no_request(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(PyskipError, match=said):
        read_requests(write(tmp_path / "in", lines), {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a text\n", "line 1: no answer to a request"),
        (b"a text", "line 1: no answer to a request"),
        (
            b'{"custom_id": "other", "response": {"status_code": 200, "body": {}}}\n',
            "answers 'other', which is not asked for",
        ),
    ],
)
def test_an_output_that_is_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(PyskipError, match=said):
        answer_all("http://127.0.0.1:9", [Request("1", "/v1/completions", {})], path, 1, lambda *_: None)
    assert path.read_bytes() == content


@pytest.mark.loopback
@pytest.mark.slow
def test_a_file_is_answered_and_taken_up(cli: Run, tiny: Path, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    command = ["generate", str(tiny), "--input", str(given), "--output", str(out), "-n", "4", "-t", "1"]
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "1 of 24 answers are errors" in done.stderr
    whole = read(out)
    assert len(whole) == len(LINES)
    assert whole["1"]["response"]["body"]["usage"]["completion_tokens"] == 3
    assert whole["chat"]["response"]["body"]["usage"]["skip_rate"] > 0
    assert whole["batch"]["response"]["body"]["choices"][0]["message"]["content"]
    assert whole["7"]["response"]["status_code"] == 400
    assert all(answer["error"] is None for answer in whole.values())

    content = out.read_bytes()
    out.write_bytes(content[: len(content) // 2])  # cut off in the middle of a line
    assert cli(*command).returncode == 0
    kept = content[: len(content) // 2].rpartition(b"\n")[0]
    assert out.read_bytes().startswith(kept)
    texts = [
        {name: answer["response"]["body"].get("choices") for name, answer in found.items()}
        for found in (whole, read(out))
    ]
    assert {name: _text(choices) for name, choices in texts[0].items()} == {
        name: _text(choices) for name, choices in texts[1].items()
    }
    before = out.read_bytes()
    assert cli(*command).returncode == 0
    assert out.read_bytes() == before


def _text(choices: Any) -> Any:
    return choices and (choices[0].get("text") or choices[0]["message"]["content"])


@pytest.mark.loopback
def test_a_server_that_is_there(cli: Run, tiny: Path, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", LINES[:2]), tmp_path / "out.jsonl"
    with running(str(tiny)) as server:
        done = cli("generate", "tiny", "--input", str(given), "--output", str(out), "--url", server.url)
        assert done.returncode == 0, done.stderr
        assert server.metric('pyskip_requests_total{path="/v1/chat/completions",status="200"}') == 1
    assert {answer["response"]["status_code"] for answer in read(out).values()} == {200}


def test_a_server_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyskip.server.batch.WAIT", 0.001)
    requests = [Request(str(i), "/v1/completions", {}) for i in range(3)]
    with pytest.raises(PyskipError, match=r"no answer .*: the same command goes on from here"):
        answer_all("http://127.0.0.1:9", requests, tmp_path / "out", 2, lambda *_: None)


@pytest.mark.parametrize(
    "args",
    [
        ["-p", "Hi", "--input", "in", "--output", "out"],
        ["--input", "in"],
        ["--output", "out"],
        ["-p", "Hi", "--url", "http://127.0.0.1:9"],
        [],
    ],
)
def test_flags_that_do_not_go_together(cli: Run, tiny: Path, args: list[str]) -> None:
    refused(cli("generate", str(tiny), *args), 2, "--input")
