"""`pyskip chat`: a conversation. On a terminal it asks; from a pipe it takes one prompt a line."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from . import ui
from .options import Options, common_options, load

if TYPE_CHECKING:
    from pyskip.generation import Answer, Message
    from pyskip.llama import Llama

__all__ = ["chat"]


@click.command()
@click.argument("model", default="demo")
@click.option("--system", metavar="TEXT", help="System message.")
@common_options
def chat(model: str, system: str | None, options: Options) -> int:
    """Chat with MODEL.

    MODEL is a path, a name of pyskip list, hf:REPO[:FILE], or demo, which is the default. With no terminal on stdin,
    each line is a turn of the conversation and each answer goes to stdout.
    """
    llm = load(model, options)
    if "tokenizer.chat_template" not in llm.metadata:
        ui.note("the model has no chat template: using ChatML")
    conversation = Conversation(llm, system, n_predict=options.n_predict, temp=options.temp, seed=options.seed)
    return _on_terminal(conversation) if sys.stdin.isatty() else _from_pipe(conversation)


class Conversation:
    """The turns so far, and what they took."""

    def __init__(self, llm: Llama, system: str | None, *, n_predict: int, temp: float, seed: int | None) -> None:
        self.llm, self.n_predict, self.temp, self.seed = llm, n_predict, temp, seed
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []
        self.answers: list[Answer] = []

    def say(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer. Raises KeyboardInterrupt when it was stopped; what had come is kept as a turn."""
        self.turns.append({"role": "user", "content": text})
        try:
            tokens = self._fit()
        except BaseException:
            self.turns.pop()
            raise
        from pyskip.generation import Generation

        generation = Generation(self.llm, tokens, max_tokens=self.n_predict, temp=self.temp, seed=self.seed)
        self.seed = None  # seeds the conversation, not each answer
        try:
            yield from ui.stream(self.llm, generation)
        finally:
            answer = generation.answer()
            if answer.n_gen:
                self.answers.append(answer)
            self.turns.append({"role": "assistant", "content": answer.text})

    def _fit(self) -> list[int]:
        """The prompt's tokens; drops the oldest turns where they leave no room for an answer."""
        from pyskip.generation import chat_tokens

        room = min(self.n_predict, max(1, self.llm.n_ctx() // 4))
        n_dropped = 0
        tokens = chat_tokens(self.llm, self.system + self.turns)
        while len(tokens) + room > self.llm.n_ctx() and len(self.turns) > 1:
            del self.turns[:2]
            n_dropped += 2
            tokens = chat_tokens(self.llm, self.system + self.turns)
        if n_dropped:
            ui.note(f"the context of {self.llm.n_ctx()} tokens is full: dropped the oldest {n_dropped} messages")
        return tokens

    def summary(self) -> str:
        n_gen = sum(a.n_gen for a in self.answers)
        seconds = sum((a.n_gen - 1) / a.gen_ts for a in self.answers if a.gen_ts)
        n_timed = sum(a.n_gen - 1 for a in self.answers if a.gen_ts)
        skipped = sum(sum(a.skip.skipped) for a in self.answers)
        blocks = skipped + sum(sum(a.skip.evaluated) for a in self.answers)
        line = (
            f"{len(self.answers)} answers, {n_gen} tokens, {n_timed / seconds if seconds else 0.0:.1f} tokens/s, "
            f"{skipped / blocks if blocks else 0.0:.1%} of FFN blocks skipped ({self.llm.skip})"
        )
        return line if self.answers[-1].pace is None else f"{line}; last answer: {self.answers[-1].pace}"


def _print(pieces: Generator[str, None, None]) -> None:
    try:
        # an interrupt may come out of echo too: the generation must have ended before what follows
        with closing(pieces):
            for piece in pieces:
                click.echo(piece, nl=False)
                sys.stdout.flush()
    finally:
        click.echo()


def _from_pipe(conversation: Conversation) -> int:
    status = 0
    try:
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                text = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise click.ClickException(
                    f"line {number} of stdin is not UTF-8: convert it, for instance with iconv"
                ) from None
            if text:
                _print(conversation.say(text))
    except KeyboardInterrupt:
        status = 130
    finally:
        if conversation.answers:
            ui.note(conversation.summary())
    return status


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _on_terminal(conversation: Conversation) -> int:
    from pyskip.errors import DecodeError

    ui.note("Ctrl-C stops an answer, Ctrl-D ends the chat")
    status = 0
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            click.echo()
            break
        except KeyboardInterrupt:
            click.echo()
            status = 130
            break
        if not text:
            continue
        if not _is_text(text):
            ui.error("what was typed is not UTF-8: set the terminal to UTF-8")
            continue
        try:
            _print(conversation.say(text))
        except KeyboardInterrupt:
            ui.note("stopped")
        except DecodeError as error:
            ui.error(str(error))
            continue
        if conversation.answers:
            ui.note(ui.answer_line(conversation.answers[-1]))
    if conversation.answers:
        ui.note(conversation.summary())
    return status
