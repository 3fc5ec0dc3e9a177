"""Every bad input that the issue names, through the command line: one line on stderr, exit 1 or 2, never a crash."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("pyskip: ")
    assert "Traceback" not in done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("command", [["generate", "-p", "x"], ["info"], ["chat"]])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"not a model at all", "does not start with GGUF"),
        (b"GGUF" + b"\xff" * 64, "cannot read"),
        (b"GGUF\3\0\0\0" + bytes(16), "no weights"),
    ],
)
def test_models(cli: Cli, tmp_path: Path, command: list[str], content: bytes | None, said: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    refused(cli(command[0], str(path), *command[1:]), 1, said)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_cut_off(cli: Cli, tmp_path: Path, demo: Path, share: float) -> None:
    whole = demo.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(cli("generate", str(path), "-p", "x"), 1, "cut off")


@pytest.mark.slow
def test_directory_and_names(cli: Cli, tmp_path: Path) -> None:
    refused(cli("generate", str(tmp_path), "-p", "x"), 1, "directory")
    refused(cli("generate", "", "-p", "x"), 1, "expected")
    refused(cli("generate", "hf:repo", "-p", "x"), 1, "names no repository")
    refused(cli("generate", "no-such-model", "-p", "x"), 1, "neither a file nor")
    refused(cli("generate", os.devnull, "-p", "x"), 1, "regular file")


def vocabulary_only(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def broken(kind: str, tmp_path: Path, tiny: Path) -> Path:
    path = tmp_path / "model.gguf"
    whole = tiny.read_bytes()
    if kind == "header":
        path.write_bytes(whole[:300])
    elif kind == "counts":
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    elif kind == "zeros":
        path.write_bytes(b"GGUF" + bytes(4096))
    elif kind == "vocabulary":
        vocabulary_only(path)
    elif kind == "missing tensor":
        path.write_bytes(whole.replace(b"blk.3.ffn_down.weight", b"blk.3.ffn_dowm.weight"))
    elif kind == "architecture":
        path.write_bytes(whole.replace(b"llama", b"lluma"))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("header", "cannot read"),
        ("counts", "cannot read"),
        ("zeros", "cannot read"),
        ("vocabulary", "vocabulary and no weights"),
        ("missing tensor", "cannot load it"),
        ("architecture", "cannot load it"),
    ],
)
def test_broken_models(cli: Cli, tmp_path: Path, tiny: Path, kind: str, said: str) -> None:
    refused(cli("generate", str(broken(kind, tmp_path, tiny)), "-p", "x", "-n", "1"), 1, said)


def test_unreadable(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny.read_bytes())
    path.chmod(0)
    command = [sys.executable, "-m", "pyskip", "generate", str(path), "-p", "x"]
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True)
    refused(done, 1, "cannot be opened for reading")


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        ("bogus", "bogus"),
        ("", "expected"),
        ("cosine:foo=1", "foo"),
        ("cosine:threshold=nan", "nan"),
        ("cosine:run=x", "'x'"),
        ("static:99", "99"),
        ("static:6", "layers 0 to 5"),
        ("cosine:cold_start=9", "leave none of the model's 6 layers"),
        ("static:", "no layer"),
        ("0.25", "profile"),
        ("profile:error=0.1", "profile"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "-p", "x"], ["chat"]])
def test_skip(cli: Cli, tiny: Path, command: list[str], skip: str, said: str) -> None:
    refused(cli(command[0], str(tiny), *command[1:], "--skip", skip), 1, said)


@pytest.mark.parametrize(
    "option",
    ["-c 0", "-c -1", "-c x", "-n 0", "-t 0", "--temp nan", "--temp inf", "--temp -1", "--seed -1", "--no-such"],
)
@pytest.mark.parametrize("command", [["generate", "-p", "x"], ["chat"]])
def test_usage(cli: Cli, tiny: Path, command: list[str], option: str) -> None:
    refused(cli(command[0], str(tiny), *command[1:], *option.split()), 2, option.split()[0])


@pytest.mark.slow
def test_more_usage(cli: Cli, tiny: Path) -> None:
    refused(cli(), 2, "command")
    refused(cli("no-such"), 2, "no-such")
    refused(cli("generate"), 2, "MODEL")
    refused(cli("generate", str(tiny)), 2, "-p")
    refused(cli("generate", str(tiny), "-p", ""), 2, "empty")
    refused(cli("generate", str(tiny), "-p", os.fsdecode(b"\xff\xfe")), 2, "UTF-8")


def test_context_beyond_memory(cli: Cli, tiny: Path) -> None:
    refused(cli("generate", str(tiny), "-p", "x", "-c", "2147483647"), 1, "GiB")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_context_beyond_the_limit_of_the_process(cli: Cli, demo: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    done = cli("generate", str(demo), "-p", "x", "-c", "1000000", "-t", "1", preexec_fn=limit)
    refused(done, 1, "GiB are free")


def test_prompt_beyond_the_context(cli: Cli, tiny: Path) -> None:
    refused(cli("generate", str(tiny), "-p", "w1 " * 500, "-t", "1", "--skip", "off"), 1, "shorten")


def test_template_that_refuses(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    part = b"<|{{ m.role }}|>{{ m.content }}"
    stern = b"{{ raise_exception('no') }}".ljust(len(part))
    path = tmp_path / "stern.gguf"
    path.write_bytes(tiny.read_bytes().replace(part, stern))
    assert path.read_bytes() != tiny.read_bytes()
    done = cli("chat", str(path), "-t", "1", "--skip", "off", input="w1\n")
    refused(done, 1, "template")


def test_prompt_that_is_not_utf8(tiny: Path) -> None:
    command = [sys.executable, "-m", "pyskip", "chat", str(tiny), "-n", "2", "-t", "1", "--skip", "off", "--temp", "0"]
    done = subprocess.run(command, input=b"w1\n\xff\xfe\nw2\n", capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"line 2 of stdin is not UTF-8" in done.stderr
    assert b"1 answers" in done.stderr
    assert b"Traceback" not in done.stderr


def shell(command: str, *args: str) -> subprocess.CompletedProcess[str]:
    script = f'pyskip() {{ "$PYTHON" -m pyskip "$@"; }}; {command}'
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", script, "bash", *args], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
class TestStreams:
    """Streams that are closed, full or of another encoding."""

    def test_reader_that_leaves(self, demo: Path) -> None:
        for n in ("0", "1", "9"):
            command = 'pyskip generate "$1" -p "Once upon" -n 300 -t 1 --skip off | head -c "$2"; exit ${PIPESTATUS[0]}'
            done = shell(command, str(demo), n)
            assert done.returncode in (0, 1)
            assert done.stderr == ""

    def test_reader_of_a_chat_that_leaves(self, demo: Path) -> None:
        command = 'printf "Hi\\nHo\\n" | pyskip chat "$1" -n 100 -t 1 --skip off | head -c 3; exit ${PIPESTATUS[1]}'
        done = shell(command, str(demo))
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_closed(self, tiny: Path) -> None:
        for closed in (">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"):
            done = shell(f'pyskip generate "$1" -p w1 -n 3 -t 1 {closed}', str(tiny))
            assert done.returncode == 0, (closed, done.stderr)
            assert "Error" not in done.stderr
        assert shell('pyskip chat "$1" -t 1 --skip off <&-', str(tiny)).returncode == 0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full(self, tiny: Path) -> None:
        done = shell('pyskip generate "$1" -p w1 -n 3 -t 1 --skip off >/dev/full', str(tiny))
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("encoding", "said"), [("latin-1", "modèle-??"), ("ascii", "modèle-模型"), ("utf-8", "modèle-模型")]
    )
    def test_other_encoding(self, encoding: str, said: str) -> None:
        """What a stream cannot encode is shown as ?; ASCII counts as a locale that was left out, and is UTF-8."""
        command = [sys.executable, "-m", "pyskip", "info", "modèle-模型"]
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=env, capture_output=True, timeout=120)
        assert done.returncode == 1
        written = done.stderr.decode("latin-1" if encoding == "latin-1" else "utf-8")
        assert written.startswith(f"pyskip: {said}")
        assert written.count("\n") == 1

    def test_text_in_other_encoding(self, demo: Path) -> None:
        command = 'PYTHONIOENCODING=ascii pyskip generate "$1" -p "Le café était très" -n 12 -t 1 --skip off'
        done = shell(command, str(demo))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 12
