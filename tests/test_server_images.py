"""pyskip serve --mmproj: images in chats, under every policy; those that are none, and those that are elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from media import image_url
from serving import ALTERNATE, Running, running

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
LONGER = ("--override-kv", "llama.context_length=int:2048")
ONE, OTHER = image_url(1), image_url(2)


@pytest.fixture(scope="module")
def server(tiny: Path, eyes: Path) -> Iterator[Running]:
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


def first(answer: Any) -> list[float]:
    """The log-probabilities of the likeliest first tokens."""
    assert answer.status_code == 200, answer.text
    top = answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [token["logprob"] for token in top]


def test_an_image_is_seen(server: Running) -> None:
    more = {"logprobs": True, "top_logprobs": 5, "max_tokens": 2}
    one, other, both, none = (first(ask(server, *urls, **more)) for urls in ((ONE,), (OTHER,), (ONE, OTHER), ()))
    for a, b in itertools.combinations((one, other, both, none), 2):
        assert a != pytest.approx(b, abs=1e-3)
    assert first(ask(server, ONE, **more)) == pytest.approx(one, abs=1e-4)
    n_tokens = [ask(server, *urls).json()["usage"]["prompt_tokens"] for urls in ((), (ONE,))]
    assert n_tokens[1] - n_tokens[0] >= 16


def test_policies_beside_images(server: Running) -> None:
    dense = said(ask(server, ONE, skip="off"))
    answer = ask(server, ONE, skip=ALTERNATE, skip_trace=True)
    assert answer.json()["usage"]["skip_rate"] == pytest.approx(1 / 3)
    assert said(answer) != dense
    assert all(piece["skipped"] == [2, 4] for piece in answer.json()["skip_trace"][1:])
    static = ask(server, ONE, skip="static:1")
    assert static.json()["usage"]["skip_rate"] == pytest.approx(1 / 6)
    assert said(ask(server, ONE, skip="off")) == dense


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "data:image/png;base64,***", "file:///etc/passwd", "x"])
def test_what_is_no_image(server: Running, url: str) -> None:
    answer = ask(server, url)
    assert answer.status_code == 400, answer.text
    assert "root:" not in answer.text
    assert said(ask(server, ONE))
