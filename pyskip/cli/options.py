"""The flags that commands share, spelt as llama.cpp spells them, and the model that they load."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import ui

if TYPE_CHECKING:
    from pyskip.runtime.llama import Llama
    from pyskip.runtime.sampling import Sampling

__all__ = ["ModelOptions", "Options", "common_options", "kernels_option", "load", "model_options"]

T = TypeVar("T")

# ggml's numbers of the types that a KV cache may have
CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2, "q4_1": 3, "iq4_nl": 20, "q5_0": 6, "q5_1": 7}


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded and what it skips; None stands for the default that the flag's help tells."""

    skip: str | None = None
    skip_prompt: float | None = None
    profile: str | None = None
    target_tps: float | None = None
    max_skip: float | None = None
    low_memory: bool = False
    lossless: bool = False
    kernels: str = "fast"
    chat_template: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    verbose: bool = False

    def engine(self) -> dict[str, Any]:
        """More of what Llama takes."""
        return {}

    def serve(self) -> list[str]:
        """The same as flags of `pyskip serve`."""
        names = {"n_ctx": "-c", "n_threads": "-t"}
        flags: list[str] = []
        for field in dataclasses.fields(ModelOptions):
            value = getattr(self, field.name)
            flag = names.get(field.name, "--" + field.name.replace("_", "-"))
            flags += [flag] if value is True else [] if value in (None, False) else [flag, str(value)]
        return flags


@dataclass(frozen=True)
class Options(ModelOptions):
    """And how it generates."""

    n_predict: int = 512
    temp: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    seed: int | None = None
    flash_attn: str = "auto"
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    lora: str | None = None
    mmproj: str | None = None
    files: tuple[str, ...] = ()
    draft: str | None = None

    def parts(self) -> list[dict[str, Any]]:
        """The images and audio that the flags name, as parts of a message."""
        if self.files and self.mmproj is None:
            raise click.UsageError("--image needs the model's projector: name it with --mmproj.")
        from pyskip.runtime.media import part_of

        return [part_of(Path(file)) for file in self.files]

    def sampling(self, otherwise: Mapping[str, float]) -> Sampling:
        """What the flags say, and for those that are not given what is told here."""
        from pyskip.runtime.sampling import Sampling

        names = [field.name for field in dataclasses.fields(Sampling)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return Sampling(**{**otherwise, **given})

    def request(self) -> dict[str, Any]:
        """How it generates, as fields of a request to the server."""
        names = {"n_predict": "max_tokens", "temp": "temperature"}
        from pyskip.runtime.sampling import Sampling

        fields = [field.name for field in dataclasses.fields(Sampling)]
        told = {"n_predict": self.n_predict, "temp": self.temp or 0.0, "seed": self.seed}
        told |= {name: getattr(self, name) for name in fields if name != "temp"}
        return {names.get(name, name): value for name, value in told.items() if value is not None}

    def llama_server(self) -> list[str]:
        """How it is loaded besides, as llama-server's own flags."""
        told = {"flash-attn": self.flash_attn, "cache-type-k": self.cache_type_k, "cache-type-v": self.cache_type_v}
        told |= {"lora": self.lora, "mmproj": self.mmproj}
        told |= {"model-draft": None if self.draft is None else str(ui.resolve(self.draft))}
        return [item for name, value in told.items() if value is not None for item in (f"--{name}", value)]

    def engine(self) -> dict[str, Any]:
        return {
            "flash_attn": {"on": True, "off": False}.get(self.flash_attn),
            "type_k": CACHE_TYPES.get(self.cache_type_k or ""),
            "type_v": CACHE_TYPES.get(self.cache_type_v or ""),
            "lora_path": self.lora,
            "mmproj": self.mmproj,
            "draft_model": None if self.draft is None else ui.resolve(self.draft),
        }


class FiniteFloat(click.FloatRange):
    """click takes nan, which no range refuses."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


kernels_option = click.option(
    "--kernels",
    type=click.Choice(["fast", "upstream"]),
    default="fast",
    show_default=True,
    help="pyskip's own kernels, or llama.cpp's: the same to the last bit as an unpatched build.",
)

_MODEL_FLAGS = [
    click.option(
        "--skip",
        metavar="SPEC",
        help="off, a rate such as 0.25, profile[:key=value,...], cosine[:key=value,...], "
        "static:LAYER,...,attn=LAYER+..., static:n=N, adaskip[:n=N], prompt[:rate=R] or "
        "random[:key=value,...]. [default: the profile's recommended point, off without a profile]",
    ),
    click.option(
        "--skip-prompt",
        type=FiniteFloat(0.0, 1.0),
        metavar="R",
        help="Rate to skip in prompts, by the model's profile; the last 32 tokens run dense. [default: 0]",
    ),
    click.option("--profile", metavar="FILE", help="The profile. [default: MODEL.skip.gguf beside the model]"),
    click.option(
        "--target-tps",
        type=FiniteFloat(0.0, min_open=True),
        metavar="N",
        help="Keep N tokens/s: skip as much as that takes, from what --skip asks for (off) to --max-skip.",
    ),
    click.option(
        "--max-skip",
        type=FiniteFloat(0.0, 1.0, min_open=True),
        metavar="R",
        help="Rate that --target-tps may come to. [default: the profile's recommended one]",
    ),
    click.option("--low-memory", is_flag=True, help="The model is larger than memory: read what runs, when it runs."),
    click.option(
        "--lossless",
        is_flag=True,
        help="Let the model draft for itself with sublayers skipped, if that pays; the text stays what it is. "
        "Dense without --skip.",
    ),
    kernels_option,
    click.option(
        "--chat-template",
        metavar="TEMPLATE",
        help="Jinja, or a file of it, in the place of the model's own chat template.",
    ),
    click.option(
        "-c",
        "n_ctx",
        type=click.IntRange(1, 2**31 - 1),
        metavar="N",
        help="Context size in tokens. [default: 4096 or the model's]",
    ),
    click.option(
        "-t", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Threads. [default: the physical cores]"
    ),
    click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log."),
]

_GENERATION_FLAGS = [
    click.option(
        "-n",
        "n_predict",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        metavar="N",
        help="Tokens to generate at most.",
    ),
    click.option(
        "--temp",
        type=FiniteFloat(0.0),
        metavar="T",
        help="Temperature; 0 takes the likeliest token. [default: 0; in a chat what the model's file recommends, "
        "else 0.8]",
    ),
    click.option(
        "--top-k", type=click.IntRange(0), metavar="N", help="Choose among the N likeliest; 0: all. [default: 40]"
    ),
    click.option(
        "--top-p",
        type=FiniteFloat(0.0, 1.0),
        metavar="P",
        help="Choose among the likeliest that make up P together. [default: 0.95]",
    ),
    click.option(
        "--min-p",
        type=FiniteFloat(0.0, 1.0),
        metavar="P",
        help="Leave out what is less likely than P of the likeliest. [default: 0.05]",
    ),
    click.option(
        "--repeat-penalty",
        type=FiniteFloat(0.0, min_open=True),
        metavar="N",
        help="Divide the scores of the last 64 tokens by N. [default: 1, none]",
    ),
    click.option(
        "--presence-penalty",
        type=FiniteFloat(-100.0, 100.0),
        metavar="N",
        help="Lower the scores of tokens that were there by N. [default: 0]",
    ),
    click.option(
        "--frequency-penalty",
        type=FiniteFloat(-100.0, 100.0),
        metavar="N",
        help="Lower them by N each time that they were. [default: 0]",
    ),
    click.option(
        "--dry-multiplier",
        type=FiniteFloat(0.0, 100.0),
        metavar="N",
        help="DRY: lower the scores of what goes on with a repetition, by N and more the longer it is. [default: 0]",
    ),
    click.option(
        "--dry-base",
        type=FiniteFloat(1.0, 100.0),
        metavar="N",
        help="Times N for each token that it is longer than allowed. [default: 1.75]",
    ),
    click.option(
        "--dry-allowed-length",
        type=click.IntRange(0, 2**31 - 1),
        metavar="N",
        help="Repetitions of up to N tokens are free. [default: 2]",
    ),
    click.option(
        "--dry-penalty-last-n",
        type=click.IntRange(0, 2**31 - 1),
        metavar="N",
        help="Look for them in the last N tokens, the prompt's included; 0: nowhere. [default: 64]",
    ),
    click.option(
        "--flash-attn",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Attention that keeps no scores; auto: with fast kernels, if the model's graph can.",
    ),
    click.option(
        "--cache-type-k", type=click.Choice(list(CACHE_TYPES)), help="Type of the KV cache's keys. [default: f16]"
    ),
    click.option(
        "--cache-type-v",
        type=click.Choice(list(CACHE_TYPES)),
        help="Type of its values; below 16 bits it needs flash attention. [default: f16]",
    ),
    click.option("--lora", metavar="FILE", help="A LoRA adapter (GGUF) for the model."),
    click.option("--mmproj", metavar="FILE", help="The model's projector (GGUF), by which it reads images or audio."),
    click.option(
        "--image",
        "--audio",
        "files",
        multiple=True,
        metavar="FILE",
        help="An image or audio before the prompt; may be repeated.",
    ),
    click.option(
        "--draft",
        metavar="MODEL",
        help="A smaller model of the same family that drafts a few tokens ahead; the text stays what it is.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), metavar="S", help="Seed of the sampling. [default: random]"
    ),
]


def _gathered(
    flags: list[Callable[[Any], Any]], into: type[ModelOptions]
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    names = [field.name for field in dataclasses.fields(into)]

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(command)
        def with_options(**kwargs: Any) -> T:
            options = into(**{name: kwargs.pop(name) for name in names})
            return command(options=options, **kwargs)

        for flag in reversed(flags):
            with_options = flag(with_options)
        return with_options

    return decorate


model_options = _gathered(_MODEL_FLAGS, ModelOptions)  # for a command that takes options: ModelOptions
common_options = _gathered([*_MODEL_FLAGS, *_GENERATION_FLAGS], Options)  # for one that generates: options: Options


def load(model: str, options: ModelOptions, open_model: Callable[..., Llama] | None = None) -> Llama:
    """The model that a command line names, by Llama or by open_model, which takes what Llama takes. Says how skipping
    stands on stderr."""
    from pyskip.policy import parse_skip

    policy = parse_skip("off" if options.skip is None else options.skip)  # before anything is loaded
    if options.skip_prompt is not None and options.skip is not None:
        policy = policy.with_prompt(options.skip_prompt)

    from pyskip.models.gguf_info import inspect
    from pyskip.runtime.llama import Llama

    path = ui.resolve(model)
    info = inspect(path)
    n_ctx = options.n_ctx or info.default_n_ctx
    llm = ui.in_thread(
        lambda: (open_model or Llama)(
            path,
            skip=policy,
            profile=options.profile,
            target_tps=options.target_tps,
            max_skip=options.max_skip,
            low_memory=options.low_memory,
            lossless=options.lossless,
            kernels=options.kernels,
            chat_template=_chat_template(options.chat_template),
            n_ctx=n_ctx,
            n_threads=options.n_threads,
            n_threads_batch=options.n_threads,
            verbose=options.verbose,
            **options.engine(),
        )
    )
    if info.n_ctx_train and n_ctx > info.n_ctx_train:
        ui.note(
            f"-c {n_ctx} is more than the {info.n_ctx_train} tokens that the model was trained with: expect worse text "
            "beyond them"
        )
    llm.set_abort(False)
    if llm.pace is not None:
        pace = llm.pace
        ui.note(
            f"skipping what it takes to keep {pace.target_tps:g} tokens/s, at most {pace.max_skip:.2f} of FFN blocks"
        )
    elif llm.lossless is not None:
        ui.note(llm.lossless.line)
    elif options.skip is None:
        _choose_default(llm, options.skip_prompt)
    return llm


def _chat_template(given: str | None) -> str | None:
    """The text itself, or that of a file of this name."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{given}: cannot be read ({error}).", param_hint="--chat-template") from None


def _choose_default(llm: Llama, skip_prompt: float | None) -> None:
    from pyskip.policy import Profiled

    if llm.profile is None:
        ui.note("running dense: there is no profile for this model; pyskip calibrate makes one")
        return
    llm.skip = Profiled(prompt=skip_prompt)
    point = llm.profile.recommended
    ui.note(
        f"skipping about {point.rate:.0%} of FFN blocks: at best {point.ideal_speedup:.2f} x as fast, perplexity "
        f"{point.ppl_ratio:.3f} x dense on its calibration text; --skip off runs dense"
    )
