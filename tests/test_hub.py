"""Models by name, from a Hub on 127.0.0.1: what is chosen, fetched, gone on with and refused, as a user meets it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from conftest import make_random
from hub_server import Hub, Repo, running_hub, sha256

import pyskip
from pyskip.catalog import read_catalog
from pyskip.gguf_info import ffn_bytes

MB = 10**6
TINY = make_random.SHAPES["tiny"]
BIG = "big/Model-GGUF"  # of more than one chunk of huggingface-hub's, so that a part of it can be there
Pull = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    content = tiny.read_bytes()
    with running_hub() as hub:
        names = ("Q2_K", "Q4_K_M", "Q8_0", "F16")
        files = {f"Tiny-{name}.gguf": content + name.encode() for name in names}
        hub.repos["some-one/Tiny-GGUF"] = Repo({"README.md": b"#", "mmproj-F32.gguf": b"", **files})
        yield hub


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    make_random.make(path, replace(TINY, n_vocab=48000))
    return path.read_bytes()


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """A user's, with a cache of its own and no token."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def run(cli: Callable[..., subprocess.CompletedProcess[str]], env: dict[str, str]) -> Pull:
    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return cli(*args, env={**env, **more})

    return run


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command leaves."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert not any("Traceback" in line or "\r" in line for line in lines)
    return lines[-1]


def incomplete(env: dict[str, str]) -> list[Path]:
    return list(Path(env["HF_HOME"]).rglob("*.incomplete"))


# What is chosen and fetched


def test_a_repository_gives_what_suits_the_machine(run: Pull, hub: Hub, tiny: Path) -> None:
    done = run("pull", "some-one/Tiny-GGUF")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name == "Tiny-Q4_K_M.gguf"
    assert path.read_bytes() == tiny.read_bytes() + b"Q4_K_M"
    choice, download = done.stderr.splitlines()
    assert re.fullmatch(
        r"pyskip: hf:some-one/Tiny-GGUF: Q4_K_M \(\d+ [kM]B\), of 4 models there: fits into [\d.]+ GB of memory", choice
    )
    assert re.fullmatch(r"pyskip: downloading Tiny-Q4_K_M\.gguf, \d+ [kM]B", download)
    assert len(hub.asked("GET", "/content/")) == 1


def test_sizes_that_no_machine_has_room_for(run: Pull, hub: Hub) -> None:
    repo = hub.repos["some-one/Tiny-GGUF"]
    repo.sizes = {f"Tiny-{name}.gguf": 10**15 for name in ("Q4_K_M", "Q8_0", "F16")}
    done = run("pull", "some-one/Tiny-GGUF")
    assert Path(done.stdout.strip()).name == "Tiny-Q2_K.gguf"
    assert "the best of those that fit" in done.stderr


@pytest.mark.parametrize("asked", ["Q8_0", "q8_0", "Tiny-Q8_0.gguf"])
def test_a_file_or_a_quantisation_may_be_named(run: Pull, asked: str) -> None:
    done = run("generate", f"hf:some-one/Tiny-GGUF:{asked}", "-p", "w1", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "downloading Tiny-Q8_0.gguf" in done.stderr


def test_what_is_in_the_cache_needs_no_network(run: Pull, hub: Hub) -> None:
    first = run("pull", "some-one/Tiny-GGUF:Q8_0")
    asked = len(hub.requests)
    for name in ("hf:some-one/Tiny-GGUF:Q8_0", "hf:some-one/Tiny-GGUF"):
        done = run("info", name, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert "Tiny-Q8_0.gguf" in done.stdout.replace("\n", "")
    assert "Q8_0" in done.stderr
    assert "from the cache" in done.stderr
    assert run("pull", "some-one/Tiny-GGUF:Q8_0", HF_HUB_OFFLINE="1").stdout == first.stdout
    assert len(hub.requests) == asked
    assert run("pull", "some-one/Tiny-GGUF:Q8_0").stdout == first.stdout  # looks for a newer one
    assert len(hub.requests) > asked
    assert len(hub.asked("GET", "/content/")) == 1


def split(path: Path, folder: Path, n: int) -> dict[str, bytes]:
    """The model in n pieces, as llama.cpp's gguf-split makes them: all keys in the first, every tensor in one."""
    reader = gguf.GGUFReader(path)
    names = [f"sub/Tiny-F32-{i:05}-of-{n:05}.gguf" for i in range(1, n + 1)]
    for i, name in enumerate(names):
        writer = gguf.GGUFWriter(folder / Path(name).name, "llama")
        if i == 0:
            for key, item in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kinds = item.types
                    writer.add_key_value(key, item.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        n_tensor = -(-len(reader.tensors) // n)
        for tensor in reader.tensors[i * n_tensor : (i + 1) * n_tensor]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return {name: (folder / Path(name).name).read_bytes() for name in names}


def test_pieces_are_fetched_all(run: Pull, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    pieces = split(tiny, tmp_path, 3)
    hub.repos["some-one/Split"] = Repo({**pieces, "sub/Other-Q8_0-00001-of-00002.gguf": b"GGUF"})
    done = run("generate", "hf:some-one/Split", "-p", "w1 w2", "-n", "4", "--skip", "off")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked("GET", "/content/")) == 3
    assert done.stdout == run("generate", str(tiny), "-p", "w1 w2", "-n", "4", "--skip", "off").stdout
    path = Path(run("pull", "some-one/Split").stdout.strip())
    assert path.name == "Tiny-F32-00001-of-00003.gguf"
    os.unlink(path.with_name("Tiny-F32-00002-of-00003.gguf"))  # what is not whole is fetched again
    assert run("info", "hf:some-one/Split").returncode == 0
    assert path.with_name("Tiny-F32-00002-of-00003.gguf").exists()


def test_pieces_are_read_as_one_model(tiny: Path, tmp_path: Path) -> None:
    split(tiny, tmp_path, 3)
    first, second = (tmp_path / f"Tiny-F32-0000{i}-of-00003.gguf" for i in (1, 2))
    assert pyskip.inspect(first) == pyskip.inspect(tiny)  # the fingerprint too: a profile serves both
    assert ffn_bytes(first, 6) == ffn_bytes(tiny, 6)
    with pytest.raises(
        pyskip.ModelLoadError, match=r"is a piece of a model, expected the first, .* -00001-of-00003\.gguf"
    ):
        pyskip.inspect(second)
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(pyskip.ModelLoadError, match=r"-00002-of-00003\.gguf: no such file"):
        pyskip.inspect(first)


def test_in_python(env: dict[str, str]) -> None:
    code = (
        "import pyskip; name = 'hf:some-one/Tiny-GGUF:F16'; print(pyskip.inspect(name).n_layer)\n"
        "llm = pyskip.Llama(name, n_threads=1, verbose=False); print(llm.model_path); llm.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"6\n.*/Tiny-F16\.gguf\n", done.stdout)
    assert done.stderr == ""  # no terminal: no bar


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(run: Pull, hub: Hub) -> None:
    hub.repos["some-one/Tiny-GGUF"].gated, hub.token = True, "hf_right"
    done = run("pull", "some-one/Tiny-GGUF:Q8_0", HF_TOKEN="hf_right")
    assert done.returncode == 0, done.stderr
    assert {headers.get("authorization") for headers in hub.asked("HEAD", "/resolve/")} == {"Bearer hf_right"}
    assert [headers.get("authorization") for headers in hub.asked("GET", "/content/")] == [None]


# The catalogue


def test_the_catalogue_is_sound() -> None:
    catalog = read_catalog()
    assert {"smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "gemma-3-1b", "phi-4-mini"} <= set(catalog)
    for name, entry in catalog.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo)
        assert entry.file.endswith(".gguf")
        assert entry.license
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.size is None or 50 * MB < entry.size < 10000 * MB
    digests = [entry.sha256 for entry in catalog.values() if entry.sha256]
    assert len(set(digests)) == len(digests)


def test_list(run: Pull, hub: Hub) -> None:
    done = run("list")
    assert done.returncode == 0
    assert run("pull").stdout == done.stdout
    rows = done.stdout.splitlines()
    assert len(rows) == len(read_catalog()) + 1
    assert re.fullmatch(
        r"smollm2-135m  105 MB  +apache-2\.0 +hf:bartowski/\S+:SmolLM2-135M-Instruct-Q4_K_M\.gguf", rows[1]
    )
    assert not hub.requests


def test_names_of_the_catalogue(env: dict[str, str], hub: Hub, tiny: Path, tmp_path: Path) -> None:
    """The installed catalogue names real repositories; here one of the same form names the tests' own."""
    whole, other = sha256(tiny.read_bytes() + b"Q8_0"), "0" * 64
    form = '[{}]\nrepo = "some-one/Tiny-GGUF"\nfile = "Tiny-Q8_0.gguf"\nlicense = "mit"\n{}\n'
    text = (
        form.format("good", f'sha256 = "{whole}"')
        + form.format("unknown", "")
        + form.format("bad", f'sha256 = "{other}"')
    )
    (tmp_path / "catalog.toml").write_text(text)
    code = (
        "import sys, pathlib; from pyskip import catalog; from pyskip.cli.main import main\n"
        f"catalog.CATALOG = pathlib.Path({str(tmp_path / 'catalog.toml')!r}); main()"
    )

    def named(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    said = error(named("pull", "bad"))
    assert f"the Hub has another file now: sha256 {whole}, expected {other} as the catalogue has it" in said
    assert "hf:some-one/Tiny-GGUF:Tiny-Q8_0.gguf" in said
    assert not hub.asked("GET", "/content/")
    for name in ("good", "unknown"):
        done = named("pull", name)
        assert done.stdout.endswith("/Tiny-Q8_0.gguf\n"), done.stderr
    assert re.search(r"^good +mit +yes +hf:some-one", named("list").stdout, re.MULTILINE)
    assert error(named("info", "goood")).endswith(
        "neither a file nor a model of the catalogue (pyskip list): did you mean good?"
    )


# What breaks off, and goes on


def test_a_broken_connection_is_gone_on_with(run: Pull, hub: Hub, big: bytes) -> None:
    hub.repos[BIG] = Repo({"big-F32.gguf": big})
    hub.break_after = [15 * MB]
    done = run("pull", BIG)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == big
    assert [headers.get("range") for headers in hub.asked("GET", "/content/")] == [None, "bytes=10485760-"]
    assert "Trying to resume download" in done.stderr
    assert "secret" not in done.stderr


def test_one_that_stays_broken_leaves_its_bytes_for_the_next_time(
    run: Pull, hub: Hub, env: dict[str, str], big: bytes
) -> None:
    hub.repos[BIG] = Repo({"big-F32.gguf": big})
    hub.break_after = [15 * MB, *[0] * 6]
    said = error(run("pull", BIG))
    assert re.fullmatch(rf"pyskip: hf:{BIG}: cannot go on with {hub.url} \(.+\): check the network; .+ goes on", said)
    assert [path.stat().st_size for path in incomplete(env)] == [10485760]
    done = run("pull", BIG)
    assert "of which 10 MB are there" in done.stderr
    assert Path(done.stdout.strip()).read_bytes() == big
    assert hub.asked("GET", "/content/")[-1]["range"] == "bytes=10485760-"
    assert not incomplete(env)


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(args: list[str], env: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyskip", *args]
    return subprocess.Popen(command, env=env, text=True, preexec_fn=hear_interrupts, **streams)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_says_where_it_stopped(hub: Hub, env: dict[str, str], run: Pull, big: bytes) -> None:
    hub.repos[BIG], hub.hold_after = Repo({"big-F32.gguf": big}), 12 * MB
    process = started(["pull", BIG], env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: any(path.stat().st_size > 10 * MB for path in incomplete(env)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert re.search(r"\npyskip: stopped at 10 MB of 2\d MB: the same command goes on from there\n+$", err)
    hub.hold_after = None
    hub.released.set()
    assert Path(run("pull", BIG).stdout.strip()).read_bytes() == big
    assert hub.asked("GET", "/content/")[-1]["range"] == "bytes=10485760-"


def test_two_at_once_download_once(hub: Hub, env: dict[str, str], big: bytes) -> None:
    hub.repos[BIG], hub.hold_after = Repo({"big-F32.gguf": big}), 12 * MB
    first = started(["pull", BIG], env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: any(path.stat().st_size > 10 * MB for path in incomplete(env)))
    second = started(["pull", BIG], env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert second.stderr is not None
    lines = [second.stderr.readline(), second.stderr.readline()]
    assert lines[-1] == "pyskip: another process downloads this file: waiting for it\n"
    hub.released.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs[0] == outputs[1]
    assert Path(outputs[0].strip()).read_bytes() == big
    assert len(hub.asked("GET", "/content/")) == 1


def test_a_bar_on_a_terminal(env: dict[str, str]) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = started(["pull", "some-one/Tiny-GGUF:Q8_0"], env, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the other end was closed
            break
        seen += chunk
    os.close(master)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.endswith("/Tiny-Q8_0.gguf\n")
    assert re.search(rb"\rTiny-Q8_0\.gguf: 100%\|", seen)


# What is refused, in one line


def test_bytes_that_are_not_the_file(run: Pull, hub: Hub, env: dict[str, str], tiny: Path) -> None:
    hub.corrupt = True
    said = error(run("pull", "some-one/Tiny-GGUF:Q8_0"))
    whole = tiny.read_bytes() + b"Q8_0"
    wrong, right = sha256(bytes(len(whole))), sha256(whole)
    assert f"Tiny-Q8_0.gguf: sha256 is {wrong}, expected {right}: what came was damaged on the way" in said
    assert not incomplete(env)
    hub.corrupt = False
    assert run("pull", "some-one/Tiny-GGUF:Q8_0").returncode == 0


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
def test_names_that_lead_nowhere(run: Pull, hub: Hub, name: str, said: str) -> None:
    hub.repos["some-one/Tiny"] = Repo({"README.md": b"#", "model.safetensors": b"x"})
    hub.repos["some-one/Two"] = Repo({"a-Q8_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"})
    assert re.search(said, error(run("pull", name)))
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
def test_answers(run: Pull, hub: Hub, path: str, status: int, headers: dict[str, str], said: str) -> None:
    hub.status = {path: [(status, headers)] * 20}
    assert re.search(said, error(run("pull", "some-one/Tiny-GGUF:Q8_0")))


def test_the_content_server_may_ask_to_wait(run: Pull, hub: Hub) -> None:
    hub.status = {"/content/": [(429, {"Retry-After": "0"})]}
    done = run("pull", "some-one/Tiny-GGUF:Q8_0")
    assert done.returncode == 0, done.stderr
    assert "Rate limited. Waiting 1.0s" in done.stderr


def test_gated(run: Pull, hub: Hub) -> None:
    hub.repos["some-one/Tiny-GGUF"].gated, hub.token = True, "hf_right"
    terms = f"gated: accept its terms at {hub.url}/some-one/Tiny-GGUF while logged in there; "
    assert error(run("pull", "some-one/Tiny-GGUF:Q8_0")).endswith(terms + "then `hf auth login`, or set HF_TOKEN")
    said = error(run("pull", "some-one/Tiny-GGUF:Q8_0", HF_TOKEN="hf_wrong"))
    assert said.endswith(terms + "the token in use has no access yet")


def test_offline_with_nothing_cached(run: Pull, hub: Hub, env: dict[str, str]) -> None:
    for name in ("hf:some-one/Tiny-GGUF", "smollm2-135m"):
        said = error(run("chat", name, HF_HUB_OFFLINE="1"))
        assert f"not in the cache ({env['HF_HOME']}/hub), and HF_HUB_OFFLINE is set: unset it to download" in said
    assert not hub.requests


def test_nobody_answers(run: Pull) -> None:
    said = error(run("chat", "hf:some-one/Tiny-GGUF", HF_ENDPOINT="http://127.0.0.1:9"))
    assert re.search(r"cannot go on with http://127\.0\.0\.1:9 \(.*refused.*\): check the network", said)


def test_a_hub_that_is_silent(run: Pull, hub: Hub) -> None:
    hub.is_silent = True
    said = error(run("pull", "some-one/Tiny-GGUF", HF_HUB_ETAG_TIMEOUT="1"))
    assert re.search(r"cannot go on with .* \(.*timed out.*\): check the network", said)


def test_no_room_is_seen_beforehand(run: Pull, hub: Hub, env: dict[str, str]) -> None:
    hub.repos["some-one/Tiny-GGUF"].sizes = {"Tiny-Q8_0.gguf": 10**17}
    said = error(run("pull", "some-one/Tiny-GGUF:Q8_0"))
    assert re.search(
        r"no room in .*/blobs \(100000000\.00 GB are needed, [\d.]+ [MG]B free\): free some, or set HF_HOME", said
    )
    assert not hub.asked("GET", "/content/")


def test_a_disk_that_fills_up(run: Pull, hub: Hub, env: dict[str, str], tiny: Path) -> None:
    blobs = Path(env["HF_HOME"]) / "hub" / "models--some-one--Tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(tiny.read_bytes() + b'Q8_0')}.incomplete").symlink_to("/dev/full")
    said = error(run("pull", "some-one/Tiny-GGUF:Q8_0"))
    assert f"Tiny-Q8_0.gguf: no room in {blobs} (No space left on device): free some, or set HF_HOME" in said
