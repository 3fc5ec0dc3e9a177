"""What was refused, or lost, without need: bad chat templates, prompts from stdin, states after a failed decode."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import pytest
from kinds import make_kind

import pyskip
from pyskip.runtime.generation import Generation

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
BAD = "{% for m in messages %}{{ m.content }"
GOOD = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
MESSAGES = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture
def untidy(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template that no Jinja parses."""
    path = tmp_path / "untidy.gguf"
    reader = gguf.GGUFReader(tiny)
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, item in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "tokenizer.chat_template"):
            kinds = item.types
            writer.add_key_value(key, item.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    writer.add_chat_template(BAD)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path, **kwargs: Any) -> pyskip.Llama:
    return pyskip.Llama(path, **{"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs})


def prompt_of(llm: pyskip.Llama) -> str:
    llm.create_chat_completion(MESSAGES, max_tokens=1)
    return llm.detokenize(llm._taken[0], special=True).decode()


def test_a_template_that_cannot_be_parsed(untidy: Path) -> None:
    with pytest.warns(UserWarning, match=r"untidy\.gguf: its tokenizer\.chat_template cannot be parsed \(") as caught:
        llm = load(untidy)
    assert caught[0].filename == __file__
    with closing(llm):
        assert llm.create_completion("w1", max_tokens=2)["usage"]["completion_tokens"] >= 0
        assert "<|im_start|>user" in prompt_of(llm)


def test_another_template(untidy: Path, tiny: Path) -> None:
    for path in (untidy, tiny):
        with closing(load(path, chat_template=GOOD)) as llm:
            assert "[w1 w2]" in prompt_of(llm)
            with closing(pickle.loads(pickle.dumps(llm))) as copy:
                assert "[w1 w2]" in prompt_of(copy)
    with pytest.raises(pyskip.ModelLoadError, match=r"the chat template cannot be parsed \("):
        load(tiny, chat_template=BAD)


def test_templates_at_the_command_line(cli: Cli, untidy: Path, tmp_path: Path) -> None:
    done = cli("chat", str(untidy), "-n", "2", "-c", "128", input="w1\n")
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("pyskip: ") and "chats use ChatML" in line for line in done.stderr.splitlines())
    (tmp_path / "t.jinja").write_text(GOOD)
    for template in (GOOD, str(tmp_path / "t.jinja")):
        done = cli("chat", str(untidy), "-n", "2", "-c", "128", "--chat-template", template, input="w1\n")
        assert done.returncode == 0, done.stderr
        assert "ChatML" not in done.stderr
    assert cli("chat", str(untidy), "--chat-template", "no-such-file", input="w1\n").returncode == 2
    assert cli("chat", str(untidy), "--chat-template", BAD, input="w1\n").returncode == 1


def test_a_prompt_from_stdin(cli: Cli, tiny: Path) -> None:
    args = ("-n", "3", "-c", "128", "--json")
    expected = cli("generate", str(tiny), "-p", "w1 w2 w3", *args)
    done = cli("generate", str(tiny), "-p", "-", *args, input="w1 w2 w3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('"prompt_ts"')[0] == expected.stdout.split('"prompt_ts"')[0]
    done = cli("generate", str(tiny), "-p", "-", input="")
    assert (done.returncode, "prompt is empty" in done.stderr) == (2, True)


def test_a_context_beyond_the_training(cli: Cli, tiny: Path) -> None:
    done = cli("generate", str(tiny), "-p", "w1", "-n", "2", "-c", "1024")
    assert done.returncode == 0
    assert "-c 1024 is more than the 512 tokens" in done.stderr
    assert "more than the" not in cli("generate", str(tiny), "-p", "w1", "-n", "2", "-c", "512").stderr


@pytest.fixture(params=["recurrent", "hybrid"])
def uncut(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose memory cannot be cut."""
    return make_kind(tmp_path / "model.gguf", request.param)


def first_five(llm: pyskip.Llama, tokens: list[int]) -> list[int]:
    return [token for token, _ in zip(llm.generate(tokens, temp=0), range(5), strict=False)]


def test_a_failed_decode_can_be_tried_again(uncut: Path) -> None:
    prompt = [1, 5, 6, 7, 8]
    with closing(load(uncut)) as other:
        expected = first_five(other, [*prompt, 9])
    with closing(load(uncut)) as llm:
        llm.eval(prompt)
        llm.set_abort(True)
        with pytest.raises(pyskip.DecodeError):
            llm.eval([9])
        llm.set_abort(False)
        assert llm.n_tokens == len(prompt)
        llm.eval([9])
        assert llm.n_tokens == len(prompt) + 1
        assert first_five(llm, [*prompt, 9]) == expected


def decoded(llm: pyskip.Llama, tokens: list[int]) -> int:
    generation = Generation(llm, tokens, max_tokens=2, temp=0, seed=None)
    list(generation)
    return generation._n_decoded


def test_cached_counts(tiny: Path) -> None:
    with closing(load(tiny)) as llm:
        assert [decoded(llm, [1, 5, 6, 7]), decoded(llm, [1, 5, 6, 8, 9])] == [4, 2]


def test_cached_counts_of_what_cannot_be_cut(uncut: Path) -> None:
    """It is decoded anew, counted so, and the same."""
    with closing(load(uncut)) as llm, closing(load(uncut)) as fresh:
        assert [decoded(llm, [1, 5, 6, 7]), decoded(llm, [1, 5, 6, 8, 9])] == [4, 5]
        assert first_five(llm, [1, 5, 6, 8, 3]) == first_five(fresh, [1, 5, 6, 8, 3])


def test_states_of_what_cannot_be_cut(uncut: Path) -> None:
    with closing(load(uncut)) as llm, closing(load(uncut)) as other:
        llm.eval([1, 5, 6])
        state = llm.save_state()
        expected = first_five(llm, [1, 5, 6, 7])
        other.eval([9, 9])
        other.load_state(state)
        assert first_five(other, [1, 5, 6, 7]) == expected
        assert other.n_tokens == llm.n_tokens
