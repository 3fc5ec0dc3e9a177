"""Llama(mmproj=): images and audio in prompts, under every policy and beside the cache."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXACT, make_profile, make_projector, make_random, open_llm, zero_layers
from media import audio, image, image_url, png, png_of, said, user

import pyskip
from pyskip.runtime.generation import Generation, chat_tokens

import llama_cpp  # isort: skip  (behind pyskip)

pytestmark = pytest.mark.slow  # needs libmtmd, which `make test` builds

TYPED = "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def fresh(llm: pyskip.Llama) -> pyskip.Llama:
    llm.engine.clear()
    llm.reset()
    return llm


def logits(llm: pyskip.Llama, messages: list[Any]) -> Any:
    """Of the first token that would be generated."""
    next(llm.generate(chat_tokens(llm, messages), temp=0.0))
    return last_logits(llm)


def last_logits(llm: pyskip.Llama) -> Any:
    return np.array(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)))


# What is seen


def test_an_image_is_seen(seeing: pyskip.Llama) -> None:
    prompts: list[list[Any]] = [
        ["w1 w2"],
        [image(1), "w1 w2"],
        [image(2), "w1 w2"],
        [image(1), image(2), "w1 w2"],
        ["w1", image(1), "w2"],
    ]
    found = [logits(fresh(seeing), [user(*parts)]) for parts in prompts]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-2
    again = logits(fresh(seeing), [user(*prompts[1])])
    assert np.array_equal(again, found[1])


def test_text_is_tokenized_as_without_an_image(seeing: pyskip.Llama) -> None:
    """The template's BOS, if it has one, and no second one."""
    tokens = chat_tokens(seeing, [user("w1 ", image(1), " w2")])
    text = [token for token in tokens if token >= 0]
    assert len(tokens) - len(text) == 16
    before, after = b"<|user|>w1 \n", b"\n w2\n<|assistant|>"
    assert text == seeing.tokenize(before, False, True) + seeing.tokenize(after, False, True)
    assert tokens[-len(text) :].count(1) == 0
    with_bos = seeing.tokenize(seeing.engine.media.text_of([image(1)]) + b"w1", add_bos=True)  # type: ignore[union-attr]
    assert with_bos[0] == 1
    assert with_bos.count(1) == 1
    assert seeing.detokenize(tokens) == seeing.detokenize(text)


def test_it_is_what_upstreams_handler_sees(tiny: Path, eyes: Path) -> None:
    """llama-cpp-python's own MTMDChatHandler, on pyskip's libmtmd; it puts a BOS before the template's text."""
    from llama_cpp.llama_chat_format import MTMDChatHandler

    messages = [user(image(1), "w1 w2")]
    ours = open_llm(tiny, 512, mmproj=eyes, chat_template="{{ bos_token }}" + TYPED, **EXACT)
    handler = MTMDChatHandler(str(eyes), verbose=False)
    theirs = open_llm(tiny, 512, chat_handler=handler, chat_template=TYPED, **EXACT)
    try:
        expected = said(ours, messages)
        for skip in ("off", "static:1,4", "cosine:threshold=0.9,run=2,cold_start=1,cold_end=1,warmup=0"):
            ours.skip = theirs.skip = skip
            for part in (image(1), image(2)):
                assert said(theirs, [user(part, "w1 w2")]) == said(ours, [user(part, "w1 w2")])
                assert last_logits(theirs) == pytest.approx(last_logits(ours), abs=1e-4)
        ours.skip = "off"
        assert said(ours, messages) == expected
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("handler", ["Llava15ChatHandler", "Qwen25VLChatHandler"])
def test_upstreams_handlers(tiny: Path, eyes: Path, handler: str) -> None:
    from llama_cpp import llama_chat_format

    llm = open_llm(tiny, 512, chat_handler=getattr(llama_chat_format, handler)(str(eyes), verbose=False), **EXACT)
    try:
        found = []
        for seed in (1, 2):
            said(llm, [user(image(seed), "w1 w2")], max_tokens=1)
            found.append(last_logits(llm))
        assert np.abs(found[0] - found[1]).max() > 1e-3
        # what such a handler decodes is nobody's text: what was at its positions before is not in the cache
        text = "w1 " * 40
        expected = llm(text, max_tokens=8, temperature=0.0)["choices"][0]["text"]
        fresh(llm)
        llm(text, max_tokens=8, temperature=0.0)
        before = llm.input_ids[:64].copy()
        llm.chat_handler._init_mtmd_context(llm)
        llm.n_tokens = 5
        llm.n_tokens = 21  # as after an image of 16 positions
        llm.eval([int(token) for token in before[21:30]])
        assert llm(text, max_tokens=8, temperature=0.0)["choices"][0]["text"] == expected
    finally:
        llm.close()


def test_audio_is_heard(tiny: Path, eyes_and_ears: Path) -> None:
    llm = open_llm(tiny, 512, mmproj=eyes_and_ears, **EXACT)
    try:
        assert llm.engine.media is not None
        assert llm.engine.media.kinds == ("images", "audio")
        found = [logits(fresh(llm), [user(part, "w1")]) for part in (audio(1), audio(2), image(1))]
        assert np.abs(found[0] - found[1]).max() > 1e-3
        assert np.abs(found[0] - found[2]).max() > 1e-3
        mixed = said(llm, [user(audio(1), "w1", image(1))])
        assert mixed == said(fresh(llm), [user(audio(1), "w1", image(1))])
        assert len(chat_tokens(llm, [user(audio(1, 31.0), "w1")])) > len(chat_tokens(llm, [user(audio(1), "w1")]))
    finally:
        llm.close()


def test_a_stream_and_a_schema(seeing: pyskip.Llama) -> None:
    messages = [user(image(1), "w1 w2")]
    pieces = seeing.create_chat_completion(messages, max_tokens=12, temperature=0.0, stream=True)
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
    assert text == said(seeing, messages)
    held = said(seeing, messages, response_format={"type": "json_object", "schema": {"enum": ["w3"]}}, max_tokens=20)
    assert held == '"w3"'


def test_other_forms_of_messages(seeing: pyskip.Llama, tmp_path: Path) -> None:
    """An image_url that is no object, files, and formats of chats that are no template."""
    file = tmp_path / "an image.png"
    file.write_bytes(png(1))
    expected = said(fresh(seeing), [user(image(1), "w1")])
    for url in (image_url(1), str(file), file, file.as_uri(), {"url": str(file)}, {"url": file}):
        assert said(seeing, [user({"type": "image_url", "image_url": url}, "w1")]) == expected
    assert seeing.create_chat_completion(iter([user("w1")]), max_tokens=1)
    for more in ({"chat_format": "chatml"}, {"chat_template": TYPED}):
        llm = open_llm(Path(seeing.model_path), 512, mmproj=seeing._mmproj, **more)
        assert said(llm, [user(image(1), "w1")]) != said(fresh(llm), [user(image(2), "w1")])
        llm.close()


def test_rows_and_columns(tmp_path: Path) -> None:
    """M-RoPE: an image has fewer positions than rows in the cache, and what follows is decoded behind them."""
    make_random.make(tmp_path / "model.gguf", make_random.SHAPES["tiny"], arch="qwen2vl")
    make_projector.make(tmp_path / "mmproj.gguf", 64, kind="qwen2vl")
    llm = open_llm(tmp_path / "model.gguf", 256, mmproj=tmp_path / "mmproj.gguf", **EXACT)
    try:
        messages = [user("w1", image(1), "w2")]
        assert llm.n_ctx() == 256
        tokens = chat_tokens(llm, messages)
        media = llm.engine.media
        assert media is not None
        n_pos = sum(token < 0 for token in tokens)
        assert 0 < n_pos < media.n_rows(tokens) - len(tokens) + n_pos
        one = said(llm, messages)
        turns = [*messages, {"role": "assistant", "content": one}, user("w3")]
        expected = logits(fresh(llm), turns)
        logits(fresh(llm), messages)
        assert logits(llm, turns) == pytest.approx(expected, abs=1e-4)
        assert llm.engine.n_cached > n_pos
        assert np.abs(logits(llm, [user("w1", image(2), "w2")]) - logits(llm, messages)).max() > 1e-3
        large = base64.b64encode(png_of(320, 320, (b"\0" + bytes(960)) * 320)).decode()
        url = {"type": "image_url", "image_url": {"url": f"data:;base64,{large}"}}
        with pytest.raises(pyskip.DecodeError, match=r"has 4\d\d tokens with its images, the context 256"):
            said(llm, [user(url, "w2")])
    finally:
        llm.close()


# What is in the cache


def test_a_conversation_keeps_its_image(seeing: pyskip.Llama) -> None:
    first = [user(image(1), "w1 w2")]
    answer = said(fresh(seeing), first)
    turns = [*first, {"role": "assistant", "content": answer}, user("w3")]
    tokens = chat_tokens(seeing, turns)
    expected = logits(fresh(seeing), turns)
    logits(fresh(seeing), first)
    found = logits(seeing, turns)
    assert seeing.engine.n_cached >= 16 + len("<|user|>")
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(tokens) > seeing.engine.n_cached


def test_another_image_is_not_taken_from_the_cache(seeing: pyskip.Llama) -> None:
    expected = [logits(fresh(seeing), [user("w1", image(seed), "w2")]) for seed in (1, 2)]
    fresh(seeing)
    for seed in (1, 2, 1, 2):
        assert logits(seeing, [user("w1", image(seed), "w2")]) == pytest.approx(expected[seed - 1], abs=1e-4)
    swapped = logits(fresh(seeing), [user(image(2), image(1), "w2")])
    logits(fresh(seeing), [user(image(1), image(2), "w2")])
    assert logits(seeing, [user(image(2), image(1), "w2")]) == pytest.approx(swapped, abs=1e-4)


def test_a_policy_that_decides_in_prompts_does_not_use_another_ones_image(seeing: pyskip.Llama) -> None:
    messages = [user(image(1), "w1 w2")]
    seeing.skip = "static:1,3"
    expected = logits(fresh(seeing), messages)
    seeing.skip = "off"
    dense = logits(fresh(seeing), messages)
    seeing.skip = "static:1,3"
    assert logits(seeing, messages) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - dense).max() > 1e-2


def test_a_state_goes_on_with_its_image(tiny: Path, eyes: Path, seeing: pyskip.Llama) -> None:
    messages = [user(image(1), "w1 w2")]
    expected = said(fresh(seeing), messages)
    state = seeing.save_state()
    other = open_llm(tiny, 512, mmproj=eyes, **EXACT)
    try:
        other.load_state(state)
        assert said(other, messages) == expected
        assert other.engine.n_cached > 16
        other.load_state(state)
        assert said(other, [user(image(2), "w1 w2")]) != expected
        assert other.engine.n_cached < 16
    finally:
        other.close()


def test_a_prompt_whose_image_is_gone(seeing: pyskip.Llama, tiny_llm: pyskip.Llama) -> None:
    tokens = chat_tokens(seeing, [user(image(1), "w1")])
    for seed in range(2, 9):
        chat_tokens(seeing, [user(image(seed), "w1")])
    fresh(seeing)
    with pytest.raises(pyskip.DecodeError, match="no longer there: hand its messages over again"):
        next(seeing.generate(tokens))
    with pytest.raises(pyskip.DecodeError, match="no longer there"):
        next(tiny_llm.generate(tokens))
    assert said(seeing, [user(image(1), "w1")])


# Policies


def test_static_equals_zeroed_blocks(tiny: Path, eyes: Path, seeing: pyskip.Llama, tmp_path: Path) -> None:
    """Invariant 2, for rows of an image, too."""
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(tiny, zeroed, [1, 3])
    llm = open_llm(zeroed, 512, mmproj=eyes, **EXACT)
    try:
        expected = logits(llm, [user("w1", image(1), "w2")])
    finally:
        llm.close()
    seeing.skip = "static:1,3"
    assert np.array_equal(logits(fresh(seeing), [user("w1", image(1), "w2")]), expected)


def test_the_prompt_is_dense_and_what_follows_is_not(seeing: pyskip.Llama) -> None:
    messages = [user("w1", image(1), "w2")]
    dense = logits(fresh(seeing), messages)
    seeing.skip = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"
    assert np.array_equal(logits(fresh(seeing), messages), dense)
    seeing.start_trace(64)
    seeing.reset_skip_stats()
    tokens = chat_tokens(seeing, messages)
    generation = Generation(fresh(seeing), tokens, max_tokens=6, seed=0)
    list(generation)
    trace = seeing.take_trace()
    seeing.start_trace(0)
    assert trace.positions.tolist() == list(range(len(tokens), len(tokens) + 5))
    assert trace.skipped.any(axis=1).all()
    answer = generation.answer()
    assert answer.n_prompt == len(tokens)
    assert answer.skip.rate > 0.2


@pytest.mark.parametrize("skip", ["0.3", "profile:rate=0.3,prompt=0.3", "0.3,hold=0"])
def test_a_profile(tiny: Path, eyes: Path, tmp_path: Path, skip: str) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny, path)
    make_profile.make_profile(path, path.with_name("model.skip.gguf"))
    llm = open_llm(
        path, 512, mmproj=eyes, skip=skip if "," not in skip or "profile" in skip else f"profile:rate={skip}"
    )
    try:
        messages = [user("w1", image(1), "w2")]
        one = said(llm, messages)
        assert llm.skip_stats().rate > 0
        assert said(fresh(llm), messages) == one
        assert said(llm, messages) == one
    finally:
        llm.close()


def test_batches(tiny: Path, eyes: Path, seeing: pyskip.Llama) -> None:
    """Invariant 4: an image in four batches."""
    llm = open_llm(tiny, 512, mmproj=eyes, n_batch=5, n_ubatch=5, **{**EXACT, "skip": "static:2"})
    try:
        found = logits(llm, [user("w1", image(1), "w2")])
    finally:
        llm.close()
    seeing.skip = "static:2"
    assert found == pytest.approx(logits(fresh(seeing), [user("w1", image(1), "w2")]), abs=1e-4)


# The library, and its end


def test_it_ends_with_the_model(tiny: Path, eyes: Path) -> None:
    llm = open_llm(tiny, 512, mmproj=eyes)
    assert llm.__getstate__()["mmproj"] == eyes
    media = llm.engine.media
    stream = llm.create_chat_completion([user(image(1), "w1")], stream=True, seed=1)  # of which it says something
    next(stream)
    llm.close()
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        list(stream)
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        said(llm, [user(image(1), "w1")])
    assert media is not None
    media.close()  # once more


def test_only_pyskips_library_is_found(eyes: Path) -> None:
    """Whatever the environment says, which stays as it is; and a build without it says so."""
    code = (
        "import os, pyskip, llama_cpp, llama_cpp.mtmd_cpp as mtmd\n"
        "from pyskip.binding.library import LIB_DIR\n"
        "assert mtmd._libmtmd._name == str(LIB_DIR / 'libmtmd.so')\n"
        "print(os.environ['MTMD_CPP_LIB'])\n"
    )
    env = {"MTMD_CPP_LIB": "/nowhere", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "/nowhere\n", done.stderr
    code = (
        "import sys, pyskip\n"
        "next(f for f in sys.meta_path if hasattr(f, '_lib_dir'))._lib_dir = __import__('pathlib').Path('/nowhere')\n"
        "from llama_cpp.llama_chat_format import Llava15ChatHandler\n"
        "Llava15ChatHandler(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(eyes)], capture_output=True, text=True)
    assert "BuildMismatchError: images and audio need libmtmd, and /nowhere has none" in done.stderr.splitlines()[-1]
