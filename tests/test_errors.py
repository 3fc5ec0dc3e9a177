"""The error tree: what may be caught as what, and that lower layers' errors come out as ours, in one line."""

import os
from contextlib import closing
from pathlib import Path

import pytest

import pyskip
from pyskip import errors


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (pyskip.BuildMismatchError, (ImportError,)),
        (pyskip.ModelLoadError, (ValueError,)),  # as in llama-cpp-python
        (pyskip.PolicyError, (ValueError,)),
        (pyskip.ProfileError, (ValueError,)),
        (pyskip.DecodeError, (ValueError, RuntimeError)),  # both of llama-cpp-python's
    ],
)
def test_tree(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert issubclass(error, (pyskip.PyskipError, *bases))
    assert all(issubclass(error, base) for base in bases)


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) <= set(pyskip.__all__)
    assert all(name in (errors.__doc__ or "") for name in errors.__all__)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


def test_files(tmp_path: Path, demo: Path) -> None:
    whole = demo.read_bytes()
    cases = {
        "missing": (None, "no such file"),
        "empty": (b"", "empty"),
        "text": (b"hello, world" * 100, "GGUF"),
        "header": (whole[:2000], "cannot read"),
        "cut": (whole[: len(whole) // 2], "cut off"),
        "last": (whole[:-1], "cut off"),
        "version": (b"GGUF" + b"\xff" * 64, "cannot read"),
        "vocabulary": (b"GGUF\3\0\0\0" + bytes(16), "no weights"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(pyskip.ModelLoadError) as caught:
            pyskip.Llama(path, verbose=False)
        message = one_line(caught.value)
        assert said in message
        assert name in message
    with pytest.raises(pyskip.ModelLoadError, match="directory"):
        pyskip.Llama(tmp_path)
    with pytest.raises(pyskip.ModelLoadError, match="NUL"):
        pyskip.Llama("a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything, and Windows asks no mode")
def test_unreadable(tmp_path: Path, demo: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(pyskip.ModelLoadError, match="permissions"):
        pyskip.Llama(path)


def test_weights_that_do_not_fit_the_architecture(tmp_path: Path, tiny: Path) -> None:
    """What only llama.cpp's loader finds is told in its own words, though verbose is off."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"blk.3.attn_q.weight", b"blk.3.attn_X.weight"))
    with pytest.raises(pyskip.ModelLoadError, match=r"tensor 'blk\.3\.attn_q\.weight' not found") as caught:
        pyskip.Llama(path, verbose=False)
    one_line(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_ctx": -1},
        {"n_ctx": 2**31},
        {"n_ctx": 2**31 - 1},  # more than any memory
        {"n_batch": 0},
        {"n_batch": -1},
        {"n_ubatch": -1},
        {"n_threads": -1},
        {"type_k": 999},
        {"lora_path": "/no/such/lora.gguf"},
    ],
)
def test_arguments(tiny: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(pyskip.ModelLoadError) as caught:
        pyskip.Llama(tiny, verbose=False, **arguments)  # type: ignore[arg-type]
    one_line(caught.value)


def test_lora_that_is_none(tiny: Path) -> None:
    """llama-cpp-python takes a LoRA that llama.cpp refused, and runs without it."""
    with pytest.raises(pyskip.ModelLoadError):
        pyskip.Llama(tiny, lora_path=str(tiny), verbose=False)


def test_decode(tiny: Path) -> None:
    with closing(pyskip.Llama(tiny, n_ctx=256, n_threads=1, verbose=False)) as llm:
        for call in (
            lambda: llm.create_completion("w1 " * 100),
            lambda: llm.eval([1] * 257),
            lambda: next(llm.generate([1] * 257)),
            lambda: next(llm.generate([])),
            lambda: llm.eval([10**6]),
            lambda: llm.eval([-1]),
        ):
            with pytest.raises(pyskip.DecodeError) as caught:
                call()
            one_line(caught.value)
        llm.reset()
        llm.eval([1, 5])  # and none of it did harm
        assert llm.n_tokens == 2


def test_closed(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, n_threads=1, verbose=False)
    llm.close()
    llm.close()
    for call in (llm.skip_stats, llm.reset_skip_stats, llm.mark_generated, lambda: llm.eval([1])):
        with pytest.raises(pyskip.PyskipError, match="closed"):
            call()
