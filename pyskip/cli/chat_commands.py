"""The commands of a chat: lines that begin with a slash. Used by chat.py, on a terminal and in a pipe."""

from __future__ import annotations

import difflib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pyskip.errors import PyskipError
from pyskip.policy import parse_skip

if TYPE_CHECKING:
    from pyskip.chat.conversation import Conversation
    from pyskip.runtime.generation import Answer

    from .heat import Line

__all__ = ["COMMANDS", "Command", "Commands", "EndOfChat", "View", "find", "unknown"]


@dataclass(frozen=True)
class Command:
    name: str
    argument: str  # as help shows it; "" if it takes none
    help: str


COMMANDS = {
    command.name: command
    for command in (
        Command("/skip", "[SPEC]", "skip by this from the next token on, or say what is skipped by"),
        Command("/stats", "", "tokens/s and blocks skipped so far, by policy and by layer"),
        Command("/heat", "", "the last answer, each token shaded by the blocks skipped for it"),
        Command("/retry", "", "answer the last turn again, under the policy now in force"),
        Command("/system", "[TEXT]", 'set the system message ("": none), or show it'),
        Command("/think", "[on|off]", "let the model reason before it answers, where its template lets that be chosen"),
        Command("/image", "FILE", "an image, or audio, for the next turn; needs --mmproj"),
        Command("/save", "FILE", "write the conversation and the model's state for it"),
        Command("/load", "FILE", "go on with a conversation that was saved"),
        Command("/clear", "", "forget the turns, and begin again"),
        Command("/help", "", "this list"),
        Command("/quit", "", "end the chat"),
    )
}


class EndOfChat(Exception):
    """/quit."""


class View(Protocol):
    """Where a chat is shown."""

    has_colours: bool

    @property
    def width(self) -> int: ...

    def note(self, line: str) -> None: ...

    def show(self, lines: list[Line]) -> None: ...


def find(line: str) -> tuple[str, str] | None:
    """The command's name and its argument, None if the line is exactly none of them."""
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    argument = argument.strip()
    if command is None or (argument and not command.argument):
        return None
    return name, argument


def unknown(line: str) -> str:
    """What to tell of a line with a slash that is none of the commands."""
    name = line.split()[0]
    if name in COMMANDS:
        return f"{name} takes no argument: {name} alone"
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{name[:40]} is no command: {hint}/help lists them, and a blank before the slash makes it a text to answer"


class Commands:
    """Runs commands on a conversation. They raise PyskipError, of one line."""

    def __init__(self, conversation: Conversation, view: View) -> None:
        self._conversation, self._view = conversation, view

    def run(self, name: str, argument: str) -> Generator[str, None, None] | None:
        """The pieces of an answer if the command brings one. Raises EndOfChat."""
        method = getattr(self, "_" + name[1:])
        result: Generator[str, None, None] | None = method(argument) if COMMANDS[name].argument else method()
        return result

    def _help(self) -> None:
        width = max(len(f"{c.name} {c.argument}") for c in COMMANDS.values()) + 2
        lines: list[Line] = [[(f"{c.name} {c.argument}".ljust(width), "bold"), (c.help, "")] for c in COMMANDS.values()]
        self._view.show(lines)

    def _quit(self) -> None:
        raise EndOfChat

    def _clear(self) -> None:
        self._conversation.clear()
        self._view.note("forgot the turns")

    def _retry(self) -> Generator[str, None, None]:
        if not self._conversation.turns:
            raise PyskipError("nothing was said yet, expected a turn to answer again: say something")
        return self._conversation.retry()

    def _system(self, text: str) -> None:
        conversation = self._conversation
        if text:
            conversation.system = None if text in ('""', "''") else text
        self._view.note(f"system message: {conversation.system or 'none'}")

    def _think(self, choice: str) -> None:
        conversation = self._conversation
        if choice not in ("", "on", "off"):
            raise PyskipError(f"/think has {choice[:40]!r}, expected on or off")
        if choice:
            conversation.thinks = choice == "on"
        state = {None: "as the model's template has it", True: "on", False: "off"}[conversation.thinks]
        known = "enable_thinking" in conversation.llm.metadata.get("tokenizer.chat_template", "")
        self._view.note(f"reasoning: {state}{'' if known else '; this template has no such choice'}")

    def _skip(self, spec: str) -> None:
        llm = self._conversation.llm
        had_pace = llm.pace is not None
        if spec:
            llm.skip = parse_skip(spec)
        pace = "" if llm.pace is None else f", moved to keep {llm.pace.target_tps:g} tokens/s"
        ended = "; the pace is no longer kept" if had_pace and llm.pace is None else ""
        self._view.note(f"skip is {llm.skip}{pace}{ended}")

    # Files

    def _image(self, file: str) -> None:
        from pyskip.runtime.media import part_of

        if self._conversation.llm.engine.media is None:
            raise PyskipError("the model has no projector, expected one: chat with --mmproj FILE")
        part = part_of(self._path(file))
        self._conversation.llm.engine.media.marked([{"content": [part]}])  # raises for what the projector does not take
        self._conversation.attached.append(part)
        n = len(self._conversation.attached)
        self._view.note(f"{_count(n, 'file')} for the next turn")

    def _save(self, file: str) -> None:
        from pyskip.chat.session import save_session

        path = self._path(file)
        conversation = self._conversation
        save_session(path, conversation.llm, conversation.system, conversation.turns)
        self._view.note(f"saved {_count(len(conversation.turns) // 2, 'turn')}: {path.stat().st_size / 2**20:.1f} MiB")

    def _load(self, file: str) -> None:
        from pyskip.chat.session import load_session

        conversation = self._conversation
        session, reason = load_session(self._path(file), conversation.llm)
        conversation.system, conversation.turns, conversation.trace = session.system, list(session.turns), None
        n_tokens = "" if reason else f", {len(session.tokens)} tokens of context"
        self._view.note(f"loaded {_count(len(session.turns) // 2, 'turn')}{n_tokens}")
        if reason:
            self._view.note(f"its state cannot be used ({reason}): the next turn reads the conversation again")
        self._adopt(session.skip)

    def _adopt(self, skip: str | None) -> None:
        """The policy of a session, if nothing is against it."""
        llm = self._conversation.llm
        if skip is None or llm.pace is not None or str(llm.skip) == skip:
            return
        try:
            llm.skip = parse_skip(skip)
        except PyskipError as error:
            self._view.note(f"skip stays {llm.skip}, it was {skip} ({error})")
        else:
            self._view.note(f"skip is {skip}, as it was")

    def _path(self, file: str) -> Path:
        if not file:
            raise PyskipError("no file is named, expected one: /save FILE, /load FILE, /image FILE")
        try:
            return Path(file).expanduser()
        except RuntimeError as error:  # no such user
            raise PyskipError(f"{file}: {error}: name another file") from None

    # What was skipped

    def _heat(self) -> None:
        from .heat import pieces_of, plain_heat, shaded_heat

        conversation = self._conversation
        if conversation.trace is None:
            raise PyskipError("no answer was given yet, expected one to show: say something")
        answer = conversation.answers[-1]
        if not len(conversation.trace):
            raise PyskipError(f"the last answer ran dense (skip {answer.skip.skip}): /skip 0.25, then /retry")
        pieces = pieces_of(conversation.llm, answer, conversation.trace)
        self._view.show(shaded_heat(pieces) if self._view.has_colours else plain_heat(pieces, self._view.width))

    def _stats(self) -> None:
        from .heat import layer_bars

        conversation = self._conversation
        if not conversation.answers:
            raise PyskipError("no answer was given yet, expected one to measure: say something")
        groups: dict[str, list[Answer]] = {}
        for answer in conversation.answers:
            groups.setdefault(_policy(answer), []).append(answer)
        lines = _table(groups)
        used = f"{conversation.llm.n_tokens} of {conversation.llm.n_ctx()} tokens"
        lines += [[("", "")], [(f"context: {used}, {_count(len(conversation.turns) // 2, 'turn')}", "")]]
        last = _policy(conversation.answers[-1])
        rates = _per_layer(groups[last])
        if any(rates):
            lines += [[("", "")], [(f"blocks skipped by layer, {last}:", "")], *layer_bars(rates, self._view.width)]
        self._view.show(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _policy(answer: Answer) -> str:
    return answer.skip.skip if answer.pace is None else f"pace {answer.pace.target_tps:g} tokens/s"


def rate_of(answers: list[Answer]) -> float:
    """tokens/s of all of them, 0 if none could be timed."""
    seconds = sum((a.n_gen - 1) / a.gen_ts for a in answers if a.gen_ts)
    return sum(a.n_gen - 1 for a in answers if a.gen_ts) / seconds if seconds else 0.0


def skip_rate_of(answers: list[Answer]) -> float:
    """Skipped / all FFN blocks of all of them; blocks are not counted while all of them run."""
    skipped = sum(sum(a.skip.skipped) for a in answers)
    blocks = skipped + sum(sum(a.skip.evaluated) or a.n_gen * len(a.skip.evaluated) for a in answers)
    return skipped / blocks if blocks else 0.0


def _per_layer(answers: list[Answer]) -> list[float]:
    skipped = [sum(layer) for layer in zip(*(a.skip.skipped for a in answers), strict=True)]
    evaluated = [sum(layer) for layer in zip(*(a.skip.evaluated for a in answers), strict=True)]
    return [s / (s + e) if s else 0.0 for s, e in zip(skipped, evaluated, strict=True)]


def _table(groups: dict[str, list[Answer]]) -> list[Line]:
    """A line for each policy, against the dense rate if one was measured."""
    dense = rate_of(groups.get("off", []))
    width = max(6, *map(len, groups)) + 2
    lines: list[Line] = [[("policy".ljust(width) + "answers  tokens  tokens/s  skipped", "dim")]]
    for policy, answers in groups.items():
        rate, n_gen = rate_of(answers), sum(a.n_gen for a in answers)
        line = f"{policy.ljust(width)}{len(answers):7}  {n_gen:6}  {rate:8.1f}  {skip_rate_of(answers):6.1%} "
        if dense and rate and policy != "off":
            line += f"  {rate / dense:.2f} x dense"
        lines.append([(line.rstrip(), "")])
    if not dense:
        lines.append([("no dense answer was timed in this chat to compare with: /skip off, then /retry", "dim")])
    return lines
