"""Pictures of `pyskip chat` on the demo model, for the docs: `make screenshots`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from terminal import Terminal

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLUMNS = 88
# rich's pictures load a font from a host: the reader's own will do
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "    <!-- Generated with Rich https://www.textualize.io -->\n", ""
)


class Chat:
    def __init__(self) -> None:
        self.terminal = Terminal(
            "chat",
            "demo",
            "-n",
            "157",
            "--temp",
            "0",
            "--skip",
            "0.25",
            columns=COLUMNS,
            rows=50,
            COLORTERM="truecolor",
        )
        self.first = 0  # line of the next picture

    def begin(self) -> None:
        """The next picture begins with the prompt that is there."""
        self.terminal.prompt()
        self.first = self.terminal.screen.top + self.terminal.screen.y

    def shoot(self, name: str) -> None:
        """What came since begin(), up to the prompt that is there now."""
        self.terminal.prompt()
        screen = self.terminal.screen
        lines = screen.styled(self.first).split("\n")[: screen.top + screen.y - self.first]
        console = Console(
            record=True,
            width=COLUMNS,
            file=io.StringIO(),
            force_terminal=True,
            color_system="truecolor",
            highlight=False,
        )
        console.print(Text.from_ansi("\n".join(lines)), end="")
        IMAGES.mkdir(exist_ok=True)
        console.save_svg(str(IMAGES / name), title="pyskip chat", code_format=FORMAT, unique_id="pyskip")


def main() -> int:
    chat = Chat()
    chat.begin()
    chat.terminal.ask("Why is the sky blue?", "tokens/s")
    chat.terminal.ask("/skip 0.4", "skip is")
    chat.terminal.ask("Name three colours, as a list.", "tokens/s")
    chat.shoot("chat.svg")
    for line in ("/clear", "/skip 0.25"):
        chat.terminal.ask(line, "pyskip: ")
    chat.terminal.ask("Why is the sky blue?", "tokens/s")
    chat.begin()
    chat.terminal.ask("/heat", "unshaded")
    chat.shoot("chat-heat.svg")
    for skip in ("off", "0.25"):
        chat.terminal.ask(f"/skip {skip}", "skip is")
        chat.terminal.ask("/retry", "tokens/s")
    chat.begin()
    chat.terminal.ask("/stats", "layer")
    chat.shoot("chat-stats.svg")
    chat.terminal.ask("/quit")
    return chat.terminal.close()


if __name__ == "__main__":
    sys.exit(main())
