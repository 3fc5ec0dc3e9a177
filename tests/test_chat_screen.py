"""What a chat shows, on a screen that the test keeps: Markdown while it streams, heat, bars; that nothing steers."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import open_llm
from rich.console import Console
from rich.text import Text
from terminal import Screen

from pyskip.cli import heat, markdown
from pyskip.cli.chat_terminal import RichView
from pyskip.runtime.generation import Answer
from pyskip.stats import SkipStats, SkipTrace

PARAGRAPH = "alpha beta **bold text** and `code`, 日本語のテキスト 👩‍🚀 e\u0301 " * 4
DOCUMENT = f"""# Heading

{PARAGRAPH}

1. one
2. two, which is
   longer
   - nested
3. three

| a | b |
|---|---|
| 1 | a long cell |
| 22222222 | x |

```python
def f(x):
    return "{"y" * 90}"
```
> quoted text

Less < than, <div>kept</div> & [a link](https://example.org/x).

{PARAGRAPH}
Last line"""


def console(file: io.StringIO, columns: int, rows: int) -> Console:
    return Console(
        file=file,
        width=columns,
        height=rows,
        force_terminal=True,
        color_system="256",
        legacy_windows=False,
        _environ={},
    )


def streamed(pieces: list[str], columns: int = 60, rows: int = 24) -> tuple[Screen, str]:
    file = io.StringIO()
    stream = markdown.MarkdownStream(console(file, columns, rows))
    for piece in pieces:
        stream.write(piece)
    stream.finish()
    screen = Screen(columns, rows)
    screen.feed(file.getvalue().replace("\n", "\r\n"))
    return screen, file.getvalue()


def cut(text: str, seed: int) -> list[str]:
    rng, at, pieces = random.Random(seed), 0, []
    while at < len(text):
        n = rng.randrange(1, 8)
        pieces.append(text[at : at + n])
        at += n
    return pieces


@pytest.fixture(autouse=True)
def every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "INTERVAL", 0.0)
    monkeypatch.setattr(markdown, "REST", 0.0)


@pytest.mark.parametrize(("columns", "rows"), [(60, 24), (60, 10), (30, 24), (100, 8)])
def test_streamed_is_what_comes_at_once(columns: int, rows: int) -> None:
    """On screens that the answer is longer than, nothing is missing, doubled, or left over."""
    whole, _ = streamed([DOCUMENT], columns, 500)
    screen, _ = streamed(cut(DOCUMENT, rows), columns, rows)
    assert screen.text == whole.text
    assert screen.odd == []
    assert (screen.x, screen.lines[screen.top + screen.y]) == (0, "")


def test_nothing_is_lost_to_markdown() -> None:
    """The words are those that rich shows of the whole, and what looks like HTML."""
    screen, _ = streamed(cut(DOCUMENT, 1), 100)
    file = io.StringIO()
    from rich.markdown import Markdown

    console(file, 99, 24).print(Markdown(DOCUMENT.replace("<", "&lt;"), hyperlinks=False))
    expected = Text.from_ansi(file.getvalue()).plain
    assert re.findall(r"\w+", screen.text) == re.findall(r"\w+", expected)
    assert "<div>kept</div>" in screen.text
    assert "https://example.org/x" in screen.text


def test_finished_blocks_are_written_once() -> None:
    text = "\n\n".join(f"block{i} " + "word " * 30 for i in range(20))
    _, raw = streamed(cut(text, 2), 60, 24)
    assert len(raw) < 15 * len(text)
    for i in range(20):
        assert raw.count(f"block{i} ") < 25  # while its first line grew


def test_a_stream_that_never_ends_its_block() -> None:
    """Code and lists longer than the screen; a table shows its last rows until it is whole."""
    for text in (
        "```\n" + "".join(f"line {i}\n" for i in range(20)),
        "".join(f"{i}. item {i}\n" for i in range(1, 20)),
        "| n | m |\n|---|---|\n" + "".join(f"| cell {i} | {'x' * i} |\n" for i in range(1, 15)),
    ):
        screen, _ = streamed(cut(text, 3), 60, 10)
        assert screen.text == streamed([text], 60, 500)[0].text
        assert [line for line in re.findall(r"(?:line|item|cell) \d+", screen.text)] == re.findall(
            r"(?:line|item|cell) \d+", text
        )


def test_a_block_that_turns_out_to_be_another_is_shown_whole() -> None:
    """A long paragraph that becomes a heading when most of it has left the screen."""
    text = "".join(f"word{i} " for i in range(100)) + "\n---\n\nend"
    screen, _ = streamed(cut(text, 4), 40, 6)
    assert all(f"word{i}" in screen.text for i in range(100))
    assert screen.text.endswith("end")


HOSTILE = (
    "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b2J", "\x1b]52;c;aGk=\x07", "\x1bP+q\x1b\\", "\r\x08\x7f\x00\x05",
    "\x1b[?1049h", "&#27;[2J", "&#x9b;2J", "`\x1b[31m`", "```\x1b[2J\n\x1b[H", "[x](http://a\x1b[2J)", "\x1b]8;;http://evil\x1b\\",
    "| \x1b[2J |\n|-|",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_an_answer_does_not_steer_the_terminal(text: str) -> None:
    screen, raw = streamed(cut(f"before {text} after\n\n{text}", 5))
    assert screen.odd == []
    assert not re.sub(r"\x1b\[[0-9;]*[mAKJ]|\n", "", raw).count("\x1b")
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]", raw)
    assert "before" in screen.text
    assert screen.cells[0]  # the screen was not cleared


def test_the_order_of_characters_is_left_alone() -> None:
    screen, _ = streamed(["a\u202eb&#x202e;c\u2066d &#8238;"])
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", screen.text)


def test_random_markdown_is_shown_whole() -> None:
    rng = random.Random(6)
    parts = (
        "# ",
        "- ",
        "1. ",
        "  ",
        "\n",
        "\n\n",
        "```\n",
        "| a |\n|---|\n",
        "> ",
        "**",
        "`",
        "word ",
        "---\n",
        "[x]: y\n",
        "*",
        "\t",
    )
    for i in range(30):
        text = "".join(rng.choice(parts) + f"w{n} " for n in range(rng.randrange(30)))
        screen, _ = streamed(cut(text, i), 40, rng.choice((5, 10, 40)))
        said = streamed([text], 40, 1000)[0].text
        assert set(re.findall(r"w\d+", said)) <= set(re.findall(r"w\d+", screen.text)), text
        assert screen.odd == []


def test_an_empty_answer_is_an_empty_line() -> None:
    assert streamed([])[1] == "\n"
    assert streamed(["\n\n"])[1] == "\n"


# Heat and bars


def answer_of(tokens: list[int], n_layer: int) -> Answer:
    none = (0,) * n_layer
    return Answer("", 4, len(tokens), 1.0, 1.0, SkipStats("x", 0, none, none, 0, none, none), None, tuple(tokens))


def test_pieces_of_an_answer(tiny: Path) -> None:
    llm = open_llm(tiny, 64)
    tokens = [261, 3 + 0xC3, 3 + 0xA9]  # " w1", and the bytes of é
    skipped = np.zeros((2, 6), np.bool_)
    skipped[0, :3], skipped[1, :6] = True, True
    trace = SkipTrace(
        np.zeros(2, np.int32),
        np.array([9, 10], np.int32),
        skipped,
        np.zeros((2, 6), np.float32),
        np.zeros_like(skipped),
        np.zeros((2, 6), np.float32),
    )
    first, second = heat.pieces_of(llm, answer_of(tokens, 6), trace)
    assert (first.text.strip(), first.share) == ("w1", 0.0)
    assert (second.text, second.share) == ("é", 0.75)
    (broken,) = heat.pieces_of(llm, answer_of(tokens[1:2], 6), trace)
    assert broken.text == "\ufffd"
    llm.close()


PIECES = [
    heat.Piece(" The", 0.0),
    heat.Piece(" sky", 0.31),
    heat.Piece("\n日本", 0.62),
    heat.Piece(" " + "x" * 70, 0.2),
]


def test_heat_without_colours() -> None:
    lines = ["".join(text for text, _ in line) for line in heat.plain_heat(PIECES)]
    assert lines[:4] == [" The sky", " 0   3", "日本 " + "x" * 70, "6    2"]
    assert "tenths" in lines[-1]
    assert all(not style.count("#") for line in heat.plain_heat(PIECES) for _, style in line)


def test_heat_in_colours() -> None:
    file = io.StringIO()
    RichView(console(file, 60, 24)).show(heat.shaded_heat(PIECES))
    assert Text.from_ansi(file.getvalue()).plain.startswith(" The sky\n日本")
    assert "70%" in file.getvalue()
    shades = {style for text, style in heat.shaded_heat(PIECES)[0] if text.strip()}
    assert len(shades) == 4  # none, and one for each share
    assert all(not style for text, style in heat.shaded_heat(PIECES)[0] if not text.strip())
    (unshaded,) = (style for text, style in heat.shaded_heat(PIECES)[0] if text == "The")
    assert unshaded == ""


@pytest.mark.parametrize(("n_layer", "width", "n_lines"), [(30, 78, 6), (6, 78, 6), (80, 60, 12), (100, 10, 120)])
def test_bars_fit_the_width(n_layer: int, width: int, n_lines: int) -> None:
    lines = [
        "".join(text for text, _ in line) for line in heat.layer_bars([i / n_layer for i in range(n_layer)], width)
    ]
    assert len(lines) == n_lines
    assert max(map(len, lines)) <= max(width, 11)


def test_bars_have_the_heights_of_the_rates() -> None:
    lines = ["".join(text for text, _ in line)[6:] for line in heat.layer_bars([0.0, 0.001, 0.5, 1.0])]
    columns = [[line[2 * il] for line in lines[:-1]] for il in range(4)]
    assert columns[0] == [" "] * 5
    assert columns[1] == [" "] * 4 + ["▁"]  # some is not none
    assert columns[2] == [" ", " ", "▄", "█", "█"]
    assert columns[3] == ["█"] * 5


def test_what_is_shown_does_not_steer_the_terminal(tiny: Path) -> None:
    llm = open_llm(tiny, 64)
    tokens = llm.tokenize(b"\x1b[2J\x9b", add_bos=False)
    trace = SkipTrace(
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, 6), np.bool_),
        np.zeros((0, 6), np.float32),
        np.zeros((0, 6), np.bool_),
        np.zeros((0, 6), np.float32),
    )
    text = "".join(piece.text for piece in heat.pieces_of(llm, answer_of(tokens, 6), trace))
    assert text.strip() == "\ufffd[2J\ufffd"
    llm.close()
