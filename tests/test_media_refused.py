"""Llama(mmproj=): what is no image, no audio, or does not fit; bytes of them changed here and there."""

from __future__ import annotations

import base64
import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import open_llm
from media import audio, image, png, png_of, said, user, wav

import pyskip
from pyskip.runtime.generation import chat_tokens

pytestmark = pytest.mark.slow  # needs libmtmd, which `make test` builds

BOMB = png_of(12000, 12000, b"\0" * 1000)
BOMBS = [png_of(60000, 60000, b"\0" * 1000), png_of(2**31 - 1, 1, b"\0")]
LONG = wav(1, 4000.0, 8)  # seconds; half a gigabyte at the encoder's rate
HUGE = wav(1)[:40] + struct.pack("<I", 0xFFFFFFF0) + b"\0" * 64


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/x.png", "expected a data: URI or the path of a file: nothing is downloaded here"),
        ("data:image/png;base64,***", "no base64"),
        ("data:image/png;base64,AAAA", "cannot be read"),
        ("data:,", "a message's file of 0 bytes cannot be read"),
        ("/no/such/file.png", "no such file"),
        ("/dev/zero", "no such file"),
        ("/etc/passwd", "cannot be read"),
        ("a\0b", "expected an image or audio"),
        ("data:;base64," + base64.b64encode(BOMB).decode(), "too large"),
        ("data:;base64," + base64.b64encode(BOMBS[0]).decode(), "cannot be read"),
        ("data:;base64," + base64.b64encode(BOMBS[1]).decode(), "cannot be read"),
        ("data:;base64," + base64.b64encode(png(1)[:200]).decode(), "cannot be read"),
        ("data:;base64," + base64.b64encode(wav(1)).decode(), "does not support audio"),
        (7, "image_url is a int"),
        (None, "image_url is a NoneType"),
        ({"uri": "x"}, "image_url is a NoneType"),
    ],
)
def test_what_is_no_image(seeing: pyskip.Llama, url: Any, reason: str) -> None:
    with pytest.raises(pyskip.DecodeError, match=reason) as caught:
        said(seeing, [user({"type": "image_url", "image_url": url}, "w1")])
    assert "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert said(seeing, [user(image(1), "w1")])


def test_what_is_no_audio(seeing: pyskip.Llama, tiny: Path, eyes_and_ears: Path) -> None:
    with pytest.raises(pyskip.DecodeError, match=r"'input_audio', and \S+ reads images: leave it out"):
        said(seeing, [user(audio(1), "w1")])
    llm = open_llm(tiny, 512, mmproj=eyes_and_ears)
    try:
        for data, reason in (
            (None, "no data"), (7, "no data"), ("***", "no base64"), ("UklGRg==", "cannot be read"),
            (base64.b64encode(LONG).decode(), "over an hour long"),
            (base64.b64encode(wav(1)[:44]).decode(), "cannot"), (base64.b64encode(wav(1)[:20]).decode(), "cannot"),
        ):  # fmt: skip
            with pytest.raises(pyskip.DecodeError, match=reason) as caught:
                said(llm, [user({"type": "input_audio", "input_audio": {"data": data}}, "w1")])
            assert "\n" not in str(caught.value)
        huge = {"type": "input_audio", "input_audio": {"data": base64.b64encode(HUGE).decode()}}
        assert said(llm, [user(huge, "w1")])  # as long as it is, and not as it says
        assert said(llm, [user(audio(1), "w1")])
    finally:
        llm.close()


def test_damaged_files_never_crash(tiny: Path, eyes_and_ears: Path) -> None:
    """Bytes of images and audio changed here and there: an answer, or an error in one line."""
    llm = open_llm(tiny, 512, mmproj=eyes_and_ears)
    rng = random.Random(0)
    bmp = (
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54 + 3072, 0, 0, 54, 40, 32, 32, 1, 24, 0, 3072, 0, 0, 0, 0)
        + bytes(3072)
    )
    n_read = 0
    try:
        for i in range(200):
            file = bytearray((png(i), bmp, wav(i, 0.2))[i % 20 % 3])
            for _ in range(rng.choice((1, 2, 8))):
                file[rng.randrange(min(len(file), 80) if rng.random() < 0.7 else len(file))] = rng.randrange(256)
            if rng.random() < 0.2:
                del file[rng.randrange(len(file)) :]
            url = "data:;base64," + base64.b64encode(bytes(file)).decode()
            with suppress(pyskip.DecodeError):
                chat_tokens(llm, [user({"type": "image_url", "image_url": url}, "w1")])
                n_read += 1
        assert 20 < n_read < 190
        assert said(llm, [user(image(1), audio(1), "w1")])
    finally:
        llm.close()


def test_prompts_that_do_not_fit(seeing: pyskip.Llama) -> None:
    many = [image(seed) for seed in range(32)]
    with pytest.raises(pyskip.DecodeError, match=r"exceed context window|the prompt has"):
        said(seeing, [user(*many, "w1")])
    media = seeing.engine.media
    assert media is not None
    with pytest.raises(pyskip.DecodeError, match="ends in an image or audio, expected text behind it"):
        next(seeing.generate(seeing.tokenize(media.text_of([image(1)]))))
    assert said(seeing, [user("<__media__>", image(1), "<__media__>")])  # nobody's marker


def test_without_a_projector(tiny_llm: pyskip.Llama) -> None:
    with pytest.raises(pyskip.DecodeError, match=r"'image_url', expected text: .*\(mmproj=, --mmproj\)"):
        said(tiny_llm, [user(image(1), "w1")])
