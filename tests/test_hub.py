"""Models by name, from a Hub on 127.0.0.1: what is chosen and fetched, as a user meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hub_server import Hub, Repo, error_line, sha256

import pyskip
from pyskip.models.catalog import read_catalog
from pyskip.models.gguf_info import ffn_bytes

MB = 10**6
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_repository_gives_what_suits_the_machine(hub_cli: Run, hub: Hub, tiny: Path) -> None:
    done = hub_cli("pull", "some-one/Tiny-GGUF")
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


def test_sizes_that_no_machine_has_room_for(hub_cli: Run, hub: Hub) -> None:
    repo = hub.repos["some-one/Tiny-GGUF"]
    repo.sizes = {f"Tiny-{name}.gguf": 10**15 for name in ("Q4_K_M", "Q8_0", "F16")}
    done = hub_cli("pull", "some-one/Tiny-GGUF")
    assert Path(done.stdout.strip()).name == "Tiny-Q2_K.gguf"
    assert "the best of those that fit" in done.stderr


@pytest.mark.parametrize("asked", ["Q8_0", "q8_0", "Tiny-Q8_0.gguf"])
def test_a_file_or_a_quantisation_may_be_named(hub_cli: Run, asked: str) -> None:
    done = hub_cli("generate", f"hf:some-one/Tiny-GGUF:{asked}", "-p", "w1", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "downloading Tiny-Q8_0.gguf" in done.stderr


def test_what_is_in_the_cache_needs_no_network(hub_cli: Run, hub: Hub) -> None:
    first = hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")
    asked = len(hub.requests)
    for name in ("hf:some-one/Tiny-GGUF:Q8_0", "hf:some-one/Tiny-GGUF"):
        done = hub_cli("info", name, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert "Tiny-Q8_0.gguf" in done.stdout.replace("\n", "")
    assert "Q8_0" in done.stderr
    assert "from the cache" in done.stderr
    assert hub_cli("pull", "some-one/Tiny-GGUF:Q8_0", HF_HUB_OFFLINE="1").stdout == first.stdout
    assert len(hub.requests) == asked
    assert hub_cli("pull", "some-one/Tiny-GGUF:Q8_0").stdout == first.stdout  # looks for a newer one
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


def test_pieces_are_fetched_all(hub_cli: Run, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    pieces = split(tiny, tmp_path, 3)
    hub.repos["some-one/Split"] = Repo({**pieces, "sub/Other-Q8_0-00001-of-00002.gguf": b"GGUF"})
    done = hub_cli("generate", "hf:some-one/Split", "-p", "w1 w2", "-n", "4", "--skip", "off")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked("GET", "/content/")) == 3
    assert done.stdout == hub_cli("generate", str(tiny), "-p", "w1 w2", "-n", "4", "--skip", "off").stdout
    path = Path(hub_cli("pull", "some-one/Split").stdout.strip())
    assert path.name == "Tiny-F32-00001-of-00003.gguf"
    os.unlink(path.with_name("Tiny-F32-00002-of-00003.gguf"))  # what is not whole is fetched again
    assert hub_cli("info", "hf:some-one/Split").returncode == 0
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


def test_in_python(hub_env: dict[str, str]) -> None:
    code = (
        "import pyskip; name = 'hf:some-one/Tiny-GGUF:F16'; print(pyskip.inspect(name).n_layer)\n"
        "llm = pyskip.Llama(name, n_threads=1, verbose=False); print(llm.model_path); llm.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"6\n.*/Tiny-F16\.gguf\n", done.stdout)
    assert done.stderr == ""  # no terminal: no bar


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(hub_cli: Run, hub: Hub) -> None:
    hub.repos["some-one/Tiny-GGUF"].gated, hub.token = True, "hf_right"
    done = hub_cli("pull", "some-one/Tiny-GGUF:Q8_0", HF_TOKEN="hf_right")
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


def test_list(hub_cli: Run, hub: Hub) -> None:
    done = hub_cli("list")
    assert done.returncode == 0
    assert hub_cli("pull").stdout == done.stdout
    rows = done.stdout.splitlines()
    assert len(rows) == len(read_catalog()) + 1
    assert re.fullmatch(
        r"smollm2-135m  105 MB  +apache-2\.0 +hf:bartowski/\S+:SmolLM2-135M-Instruct-Q4_K_M\.gguf", rows[1]
    )
    assert not hub.requests


def test_names_of_the_catalogue(hub_env: dict[str, str], hub: Hub, tiny: Path, tmp_path: Path) -> None:
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
        "import sys, pathlib; from pyskip.models import catalog; from pyskip.cli.main import main\n"
        f"catalog.CATALOG = pathlib.Path({str(tmp_path / 'catalog.toml')!r}); main()"
    )

    def named(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, env=hub_env, capture_output=True, text=True, timeout=60)

    said = error_line(named("pull", "bad"))
    assert f"the Hub has another file now: sha256 {whole}, expected {other} as the catalogue has it" in said
    assert "hf:some-one/Tiny-GGUF:Tiny-Q8_0.gguf" in said
    assert not hub.asked("GET", "/content/")
    for name in ("good", "unknown"):
        done = named("pull", name)
        assert done.stdout.endswith("/Tiny-Q8_0.gguf\n"), done.stderr
    assert re.search(r"^good +mit +yes +hf:some-one", named("list").stdout, re.MULTILINE)
    assert error_line(named("info", "goood")).endswith(
        "neither a file nor a model of the catalogue (pyskip list): did you mean good?"
    )
