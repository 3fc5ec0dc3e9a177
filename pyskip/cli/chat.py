"""`pyskip chat`: a conversation. On a terminal it asks; from a pipe it takes one prompt a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import click

from . import ui
from .chat_commands import Commands, EndOfChat, find, rate_of, skip_rate_of, unknown
from .chat_view import PlainView
from .options import Options, common_options, load

if TYPE_CHECKING:
    from pyskip.chat.conversation import Conversation

__all__ = ["chat"]


@click.command()
@click.argument("model", default="demo")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this alone; - reads it from stdin, all of it.")
@click.option(
    "--reasoning",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether the model reasons before it answers, where its template lets that be chosen.",
)
@click.option("--load", "session", metavar="FILE", help="Go on with a conversation that /save wrote.")
@common_options
def chat(
    model: str, system: str | None, prompt: str | None, reasoning: str, session: str | None, options: Options
) -> int:
    """Chat with MODEL.

    MODEL is a path, a name of pyskip list, hf:REPO[:FILE], or demo, which is the default. With no terminal on stdin,
    each line is a turn of the conversation and each answer goes to stdout. Lines such as /help are commands.
    """
    text = None if prompt is None else _prompt(prompt)
    parts = options.parts()
    llm = load(model, options)
    if "tokenizer.chat_template" not in llm.metadata:
        ui.note("the model has no chat template: using ChatML")
    from pyskip.chat.conversation import Conversation
    from pyskip.runtime.sampling import for_chat

    conversation = Conversation(
        llm,
        system,
        n_predict=options.n_predict,
        sampling=options.sampling(for_chat(llm.metadata)),
        seed=options.seed,
        thinks={"on": True, "off": False}.get(reasoning),
        stream=lambda pieces: ui.stream(llm, pieces),
        tell=ui.note,
    )
    conversation.attached += parts
    if session is not None:
        Commands(conversation, PlainView()).run("/load", session)
    if text is not None:
        return _once(conversation, text)
    if not sys.stdin.isatty():
        return _from_pipe(conversation)
    if ui.is_plain(sys.stdout):
        return _on_terminal(conversation, PlainView(), lambda: input("> "))
    from .chat_terminal import RichView, reader

    return _on_terminal(conversation, RichView(), reader(llm))


def _prompt(given: str) -> str:
    try:
        text = (sys.stdin.buffer.read() if given == "-" else given.encode("utf-8")).decode("utf-8").strip()
    except UnicodeError:
        raise click.BadParameter("the prompt is not valid UTF-8.", param_hint="-p") from None
    if not text:
        raise click.BadParameter("the prompt is empty.", param_hint="-p")
    return text


def _once(conversation: Conversation, text: str) -> int:
    try:
        PlainView().answer(conversation.say(text))
    except KeyboardInterrupt:
        return 130
    finally:
        if conversation.answers:
            ui.note(_summary(conversation))
    return 0


def _summary(conversation: Conversation) -> str:
    answers = conversation.answers
    policies = ", ".join(dict.fromkeys(a.skip.skip for a in answers))
    line = (
        f"{len(answers)} answers, {sum(a.n_gen for a in answers)} tokens, {rate_of(answers):.1f} tokens/s, "
        f"{skip_rate_of(answers):.1%} of FFN blocks skipped ({policies})"
    )
    return line if answers[-1].pace is None else f"{line}; last answer: {answers[-1].pace}"


def _from_pipe(conversation: Conversation) -> int:
    """A line is a command only if it is exactly one; an error ends the chat."""
    view = PlainView()
    commands = Commands(conversation, view)
    status = 0
    try:
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                text = raw.decode("utf-8").rstrip()
            except UnicodeDecodeError:
                raise click.ClickException(
                    f"line {number} of stdin is not UTF-8: convert it, for instance with iconv"
                ) from None
            command = find(text)
            if command is None and not text:
                continue
            pieces = commands.run(*command) if command else conversation.say(text.strip())
            if pieces is not None:
                view.answer(pieces)
    except KeyboardInterrupt:
        status = 130
    except EndOfChat:
        pass
    finally:
        if conversation.answers:
            ui.note(_summary(conversation))
    return status


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _on_terminal(conversation: Conversation, view: PlainView, read: Callable[[], str]) -> int:
    """read() gives what was typed, and raises EOFError, or KeyboardInterrupt for Ctrl-C if nothing was."""
    view.note("Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists commands")
    commands = Commands(conversation, view)
    status = interrupts = 0
    while True:
        try:
            text = read().rstrip()
        except EOFError:
            click.echo()
            break
        except KeyboardInterrupt:
            click.echo()
            interrupts += 1
            if interrupts == 2:
                status = 130
                break
            view.note("Ctrl-C again, or Ctrl-D, ends the chat")
            continue
        interrupts = 0
        if text.strip() and not _turn(conversation, commands, view, text):
            break
    if conversation.answers:
        view.note(_summary(conversation))
    return status


def _turn(conversation: Conversation, commands: Commands, view: PlainView, text: str) -> bool:
    """Answers a text or runs a command. Whether the chat goes on."""
    from pyskip.errors import PyskipError

    n_before = len(conversation.answers)
    try:
        pieces = _pieces(conversation, commands, text)
        if pieces is not None:
            view.answer(pieces)
    except EndOfChat:
        return False
    except KeyboardInterrupt:
        view.note("stopped")
    except PyskipError as error:
        view.error(str(error))
    if len(conversation.answers) > n_before:
        view.note(ui.answer_line(conversation.answers[-1]))
    return True


def _pieces(conversation: Conversation, commands: Commands, text: str) -> Generator[str, None, None] | None:
    from pyskip.errors import PyskipError

    if not _is_text(text):
        raise PyskipError("what was typed is not UTF-8: set the terminal to UTF-8")
    command = find(text)
    if command is not None:
        return commands.run(*command)
    if text.startswith("/"):
        raise PyskipError(unknown(text))
    return conversation.say(text.strip())
