"""pyskip serve --mmproj: images in chats, under every policy; those that are none, and those that are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projector import image_url, make_projector
from serving import ALTERNATE, Running, running

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
LONGER = ("--override-kv", "llama.context_length=int:2048")
RED, BLUE = image_url(250, 10, 10), image_url(10, 10, 250)


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    eyes = make_projector(tmp_path_factory.mktemp("eyes") / "mmproj.gguf", 64)
    with running(str(tiny), "-c", "2048", "--", "--mmproj", str(eyes), *LONGER, "-ctk", "f32", "-ctv", "f32") as server:
        yield server


def ask(server: Running, *urls: str, **more: Any) -> Any:
    content: list[Any] = [{"type": "text", "text": "w1 w2"}]
    content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return server.post(CHAT, {**body, **more})


def said(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_image_is_seen(server: Running) -> None:
    red, blue, none = said(ask(server, RED)), said(ask(server, BLUE)), said(ask(server))
    assert len({red, blue, none}) == 3
    assert said(ask(server, RED)) == red
    assert said(ask(server, RED, BLUE)) != red
    n_tokens = [ask(server, *urls).json()["usage"]["prompt_tokens"] for urls in ((), (RED,))]
    assert n_tokens[1] - n_tokens[0] >= 16


def test_policies_beside_images(server: Running) -> None:
    dense = said(ask(server, RED, skip="off"))
    answer = ask(server, RED, skip=ALTERNATE, skip_trace=True)
    assert answer.json()["usage"]["skip_rate"] == pytest.approx(1 / 3)
    assert said(answer) != dense
    assert all(piece["skipped"] == [2, 4] for piece in answer.json()["skip_trace"][1:])
    static = ask(server, RED, skip="static:1")
    assert static.json()["usage"]["skip_rate"] == pytest.approx(1 / 6)
    assert said(ask(server, RED, skip="off")) == dense


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "data:image/png;base64,***", "file:///etc/passwd", "x"])
def test_what_is_no_image(server: Running, url: str) -> None:
    answer = ask(server, url)
    assert answer.status_code == 400, answer.text
    assert "root:" not in answer.text
    assert said(ask(server, RED))
