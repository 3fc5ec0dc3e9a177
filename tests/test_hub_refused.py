"""Names that lead nowhere, and Hubs that do not give: one line each, that says what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from hub_server import Hub, Repo, error_line

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:Tiny-GGUF", "names no repository, expected hf:OWNER/NAME or hf:OWNER/NAME:FILE"),
        ("hf:some--one/x..y", "Cannot have -- or .."),
        ("some-one/Tinny-GGUF", r"no such repository, or a private one .*: did you mean some-one/Tiny-GGUF"),
        ("some-one/Tiny-GGUF:Tiny-Q8.gguf", r"no such file among its 4 models: did you mean Tiny-Q8_0\.gguf"),
        ("some-one/Tiny-GGUF:Q7", "no such file among its 4 models"),
        ("some-one/Tiny", r"no whole GGUF model among its 2 files: .*: did you mean some-one/Tiny-GGUF"),
        ("some-one/Two:Q8_0", r"2 files are Q8_0: name one, such as a-Q8_0\.gguf or b-Q8_0\.gguf"),
        ("no-such-model", r"neither a file nor a model of the catalogue"),
        ("./no/such.gguf", "no such file, and no name of a model"),
    ],
)
def test_names_that_lead_nowhere(hub_cli: Run, hub: Hub, name: str, said: str) -> None:
    hub.repos["some-one/Tiny"] = Repo({"README.md": b"#", "model.safetensors": b"x"})
    hub.repos["some-one/Two"] = Repo({"a-Q8_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"})
    assert re.search(said, error_line(hub_cli("pull", name)))
    assert not hub.asked("GET", "/content/")


API, FILE = "/api/models/", "/some-one/"


@pytest.mark.parametrize(
    ("path", "status", "headers", "said"),
    [
        (API, 429, {"Retry-After": "60"}, r"too many requests: try again in 60 s; with a token"),
        (FILE, 429, {}, r"too many requests: try again later"),
        (
            API,
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "the Hub does not know the token",
        ),
        (API, 403, {}, "the token has no right to read this"),
        (API, 503, {}, "answers 503: try again later"),
        (API, 200, {}, "does not answer as the Hub does: check HF_ENDPOINT and the proxy"),
        (FILE, 404, {"X-Error-Code": "EntryNotFound"}, "the file is not there any more"),
    ],
)
def test_answers(hub_cli: Run, hub: Hub, path: str, status: int, headers: dict[str, str], said: str) -> None:
    hub.status = {path: [(status, headers)] * 20}
    assert re.search(said, error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")))


def test_the_content_server_may_ask_to_wait(hub_cli: Run, hub: Hub) -> None:
    hub.status = {"/content/": [(429, {"Retry-After": "0"})]}
    done = hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")
    assert done.returncode == 0, done.stderr
    assert "Rate limited. Waiting 1.0s" in done.stderr


def test_gated(hub_cli: Run, hub: Hub) -> None:
    hub.repos["some-one/Tiny-GGUF"].gated, hub.token = True, "hf_right"
    terms = f"gated: accept its terms at {hub.url}/some-one/Tiny-GGUF while logged in there; "
    assert error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")).endswith(
        terms + "then `hf auth login`, or set HF_TOKEN"
    )
    said = error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0", HF_TOKEN="hf_wrong"))
    assert said.endswith(terms + "the token in use has no access yet")


def test_offline_with_nothing_cached(hub_cli: Run, hub: Hub, hub_env: dict[str, str]) -> None:
    for name in ("hf:some-one/Tiny-GGUF", "smollm2-135m"):
        said = error_line(hub_cli("chat", name, HF_HUB_OFFLINE="1"))
        assert f"not in the cache ({hub_env['HF_HOME']}/hub), and HF_HUB_OFFLINE is set: unset it to download" in said
    assert not hub.requests


def test_nobody_answers(hub_cli: Run) -> None:
    said = error_line(hub_cli("chat", "hf:some-one/Tiny-GGUF", HF_ENDPOINT="http://127.0.0.1:9"))
    assert re.search(r"cannot go on with http://127\.0\.0\.1:9 \(.*refused.*\): check the network", said)


def test_a_hub_that_is_silent(hub_cli: Run, hub: Hub) -> None:
    hub.is_silent = True
    said = error_line(hub_cli("pull", "some-one/Tiny-GGUF", HF_HUB_ETAG_TIMEOUT="1"))
    assert re.search(r"cannot go on with .* \(.*timed out.*\): check the network", said)
