"""`pyskip.Llama`: llama_cpp.Llama with a skip policy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Literal

from ..binding import log
from ..binding.crash import aborts_caught
from ..binding.kernels import check_kernels, kernels_chosen
from ..binding.library import llama_cpp
from ..binding.media import Projector
from ..binding.pieces import token_bytes, tokenize
from ..binding.remote import remote_devices
from ..errors import ModelLoadError
from ..models import resolve
from ..models.gguf_info import check_context, inspect
from ..policy import Policy, Profiled, parse_skip
from ..policy.base import Paced
from ..system import physical_cores
from .arguments import check_arguments, check_lossless, check_names, check_projector
from .draft import Draft, check_cuts
from .engine import Engine
from .formatter import MessageFormatter
from .generating import Generating
from .guard import Closed, Guard, guarded
from .lossless import Lossless
from .media import Media, is_placeholder
from .model_file import ModelFile
from .reuse import CacheLog
from .template import TEMPLATE, check_template, usable_metadata

__all__ = ["Llama"]

OWN_ARGUMENTS = (
    "skip", "profile", "target_tps", "max_skip", "low_memory", "kernels", "flash_attn", "chat_template", "mmproj",
    "lossless", "rpc_servers",
)  # fmt: skip


@guarded
class Llama(Generating):
    """A GGUF model whose FFN blocks can be skipped, token by token, while it generates.

    Everything that llama_cpp.Llama takes and does, and:

    model_path: a path, or as a string all that names a model on the command line: demo, a name of the catalogue
        (pyskip list), hf:OWNER/NAME[:FILE]; the last two download what huggingface-hub's cache has not.

    skip: a specification such as "cosine:threshold=0.98" or "static:5,14,25", or a policy of pyskip.policy. May be
        changed at any time; counts from the next token on, and keeps the KV cache.

    profile: the path of the model's profile. Default: the file beside the model (model.skip.gguf), else one that comes
        with pyskip. Read when a policy first needs it.

    target_tps, max_skip: a pace to keep, as by keep_pace().

    low_memory: for a model larger than memory. Weights stay in the mapped file, and under a policy other than off only
        those of blocks that run are read.

    draft_model: as llama_cpp.Llama's, or a model by path or name, smaller and of the same family, that drafts three
        tokens ahead: the text stays what it is, and comes faster where the draft is mostly right.

    lossless: the model drafts for itself, with sublayers skipped: the text stays what it is, and comes faster where
        verifying some tokens costs little more than decoding one. That is measured when it is loaded; where nothing is
        gained it runs as without. "always": it drafts all the same. Not beside draft_model or target_tps.

    chat_template: Jinja, in the place of the model's own. Where neither can be parsed a warning says so, and chats use
        ChatML.

    mmproj: the path of the model's projector (a GGUF file): messages may then have parts of type image_url, a data: URI
        or a path, and input_audio. Not beside chat_handler.

    rpc_servers: HOST:PORT of llama.cpp's rpc-server on other machines, for a model that is larger than this one: the
        last n_gpu_layers layers (default: all) lie there and run dense, those that stay here skip (skippable_layers).
        What goes there and comes back is neither encrypted nor signed: trusted networks only.

    kernels: "fast", pyskip's own where it has them for a weight's type and the processor, or "upstream", whose logits
        are those of unpatched llama.cpp to the last bit.

    flash_attn: None: with fast kernels, if the model's graph can; with upstream's not, as llama_cpp.Llama.

    Prompts run dense, except under `static` and `profile:prompt=...`. Tokens that generate() and all that builds on it
    (completion, chat) feed back are decided by the policy; embeddings and eval() are dense unless mark_generated() says
    otherwise.

    n_threads and n_threads_batch default to the physical cores that the process may use.

    Raises ModelLoadError for a file that is no whole model or a context that cannot fit, PolicyError for a policy that
    does not fit the model, ProfileError for a profile that is missing, damaged or another model's, TypeError for an
    argument that nobody knows. Once closed, everything raises ModelLoadError. One thread at a time may use it; a second
    one gets a DecodeError. Ctrl-C stops a decode that the main thread waits for.

    seed: of all that samples; without one every generation has its own.
    """

    _guard: Guard | None = None  # while it is being loaded
    _engine: Engine | None = None
    _lossless: Lossless | None

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        skip: str | float | Policy = "off",
        profile: str | os.PathLike[str] | None = None,
        target_tps: float | None = None,
        max_skip: float | None = None,
        low_memory: bool = False,
        kernels: str = "fast",
        flash_attn: bool | None = None,
        chat_template: str | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        lossless: bool | Literal["always"] = False,
        rpc_servers: Sequence[str] = (),
        n_ctx: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_names(kwargs, OWN_ARGUMENTS, is_local=not rpc_servers)
        policy = parse_skip(skip)
        check_kernels(kernels)
        check_template(chat_template)
        check_lossless(lossless, kwargs.get("draft_model"), target_tps)
        self._chat_template, self._mmproj = chat_template, mmproj
        if mmproj is not None:
            check_projector(os.fsdecode(mmproj), kwargs)
        path = os.fsdecode(resolve(model_path) if isinstance(model_path, str) else model_path)
        vocab_only = bool(kwargs.get("vocab_only"))
        file = ModelFile(path) if kwargs.get("use_mmap", True) else None
        info = inspect(path, weights=not vocab_only)
        if not vocab_only:
            check_context(info, n_ctx)
        self._info = info
        self._profile_path = profile
        self._profile = None
        arguments = {"n_threads": n_threads, "n_threads_batch": n_threads_batch, "low_memory": low_memory, **kwargs}
        check_arguments(arguments)
        self._engine = None
        self._guard = None
        self._cache_log, self._lost = CacheLog(), False
        self.n_drafted = self.n_accepted = 0
        self._taken = ([], [])
        self._policy = parse_skip("off")
        self._low_memory, self._kernels = low_memory, kernels
        self._lossless = None
        self._devices = remote_devices(rpc_servers) if rpc_servers else None
        if rpc_servers:
            kwargs.setdefault("n_gpu_layers", -1)
        self._pace = None
        self._pace_from: Paced = Profiled(rate=0.0)
        log.forget()
        cores = physical_cores()
        kwargs |= {"n_ctx": n_ctx, "n_threads": n_threads or cores, "n_threads_batch": n_threads_batch or cores}
        draft = kwargs.pop("draft_model") if isinstance(kwargs.get("draft_model"), (str, os.PathLike)) else None
        self._load(path, kernels, flash_attn, kwargs)
        self._engine = Engine(self.model, self.ctx, info, file, max(self.n_threads, self.n_threads_batch))
        self._n_ctx = self.n_ctx()
        self._make_chat_handlers()
        if kwargs.get("chat_format") is None and self.chat_handler is None:
            if TEMPLATE in self.metadata:
                self.chat_format = "chat_template.default"  # upstream takes a format of its own where it knows the text
            elif self._lost_template:
                self.chat_format = "chatml"  # upstream would take LLaMA 2's
        self.set_seed(-1 if seed is None else seed)
        self.engine.skip.set_abort(False)  # llama.cpp asks from now on
        try:
            if self.lora_path and not self._lora_adapter:
                raise ModelLoadError(
                    f"{self.lora_path}: not a LoRA for this model ({log.last_complaint() or 'no reason given'})"
                )
            if low_memory:
                self.engine.skip.set_streaming(True)
            if mmproj is not None:
                self._load_projector(os.fsdecode(mmproj))
            if draft is not None:
                self._open_draft(draft, kernels)
            if lossless:
                self._lossless = Lossless(self, lossless == "always")
                self.draft_model = self._lossless if self._lossless.pays else None
            self._decide_by(policy, target_tps, max_skip)
        except BaseException:
            self.close()
            raise
        self._guard = Guard()

    def _load(self, path: str, kernels: str, flash_attn: bool | None, arguments: dict[str, Any]) -> None:
        """llama_cpp.Llama.__init__. A few architectures have a graph that aborts with flash attention: if nobody asked
        for it, they do without. Raises ModelLoadError."""
        wanted = kernels == "fast" if flash_attn is None else flash_attn
        try:
            with kernels_chosen(kernels), aborts_caught():
                super().__init__(path, flash_attn=wanted, **arguments)
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = log.last_complaint() or str(error)
            has_weights = hasattr(self, "_model")
            if hasattr(self, "_stack"):
                super().close()
            if wanted and flash_attn is None and has_weights:
                log.forget()
                return self._load(path, kernels, False, arguments)
            raise ModelLoadError(f"{path}: llama.cpp cannot load it ({reason})") from error

    def _load_projector(self, path: str) -> None:
        if self.engine.has_encoder:
            raise ModelLoadError(
                f"mmproj found an encoder-decoder ({self.model_path}), expected a decoder: leave it out"
            )
        enabled = self.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        projector = Projector(path, self.model, self.n_threads_batch, enabled)
        self.engine.media = Media(projector)
        self._stack.callback(self.engine.media.close)  # before the model

    def _open_draft(self, path: str | os.PathLike[str], kernels: str) -> None:
        """Raises ModelLoadError for a model that cannot draft for this one."""
        check_cuts(self, "the model")
        threads = {"n_threads": self.n_threads, "n_threads_batch": self.n_threads_batch}
        llm = Llama(path, n_ctx=self._n_ctx, n_batch=self.n_batch, kernels=kernels, verbose=self.verbose, **threads)
        try:
            self.draft_model = Draft(llm, self)
        except BaseException:
            llm.close()
            raise

    @property
    def lossless(self) -> Lossless | None:
        """How it drafts for itself, None if it was not loaded to; its `line` tells whether that pays."""
        return self._lossless

    @property
    def kernels(self) -> str:
        """What it was loaded for: fast or upstream."""
        return self._kernels

    @property
    def model_params(self) -> Any:
        """llama_model_params; llama_cpp.Llama sets it before it loads the model."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        if self._low_memory:
            params.use_extra_bufts = False  # repacked weights are copies in memory
        if self._devices is not None:
            params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        self._model_params = params

    @property
    def metadata(self) -> dict[str, str]:
        """What the model's file says, without chat templates that cannot be parsed; llama_cpp.Llama sets it when the
        model is loaded, and then makes handlers of the templates."""
        return self._metadata

    @metadata.setter
    def metadata(self, found: dict[str, str]) -> None:
        self._metadata = usable_metadata(found, self._chat_template, self.model_path)
        self._lost_template = TEMPLATE in found and TEMPLATE not in self._metadata

    def _make_chat_handlers(self) -> None:
        """In the place of upstream's, which drop what a template does not take as it stands."""
        eos, bos = self.token_eos(), self.token_bos()
        for name, template in self.metadata.items():
            if name == TEMPLATE or name.startswith(f"{TEMPLATE}."):
                key = "chat_template.default" if name == TEMPLATE else name.removeprefix("tokenizer.")
                formatter = MessageFormatter(
                    template,
                    eos_token=self.engine.token_text(eos),
                    bos_token=self.engine.token_text(bos),
                    stop_token_ids=[eos],
                )
                self._chat_handlers[key] = formatter.to_chat_handler()

    def n_ctx(self) -> int:
        """Tokens that the context holds. llama.cpp rounds up what was asked for, upstream's own arrays do not; and it
        aborts beyond the last learned position."""
        n_ctx = min(int(super().n_ctx()), self._info.n_positions or 2**31)
        return min(n_ctx, len(self.input_ids)) if hasattr(self, "input_ids") else n_ctx

    def check_process(self) -> None:
        """What eval() sees to before it decodes, for those who call llama_decode() themselves. Raises DecodeError if
        the model's file was written to while it is mapped, or its threads are those of a process that forked."""
        self.engine.check_process()

    def set_abort(self, abort: bool) -> None:
        """Make the decode that is under way stop, that of a draft, too (it raises DecodeError), and those to come,
        until set_abort(False).

        May be called from another thread, once set_abort(False) was called in the thread that decodes.
        """
        super().set_abort(abort)
        if isinstance(self.draft_model, Draft):
            self.draft_model.llm.set_abort(abort)

    @property
    def lora_scale(self) -> float:
        """How much of lora_path's LoRA is added. May be set at any time; counts from the next token on."""
        return self._lora_scale

    @lora_scale.setter
    def lora_scale(self, scale: float) -> None:
        self._lora_scale = scale
        if self._engine is not None and self._lora_adapter:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._lora_adapter)
            llama_cpp.llama_set_adapters_lora(self.ctx, adapters, 1, (ctypes.c_float * 1)(scale))

    @property
    def ctx(self) -> Any:
        """llama_context *, for llama_cpp's own functions. Raises ModelLoadError once closed."""
        self._check_open()
        return self._ctx.ctx

    @property
    def model(self) -> Any:
        """llama_model *, likewise."""
        self._check_open()
        return self._model.model

    def _check_open(self) -> None:
        if self._guard is not None:
            self._guard.check_open()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """llama_cpp.Llama.tokenize; raises DecodeError if the vocabulary cannot."""
        if type(self.tokenizer_) is not llama_cpp.LlamaTokenizer:
            return list(super().tokenize(text, add_bos, special))
        media = self.engine.media if self._engine is not None else None
        if media is not None and media.is_marked(text):
            return media.tokenize(text, add_bos, special)
        return tokenize(self._model.vocab, text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """llama_cpp.Llama.detokenize, with pieces of any length; of images and audio nothing."""
        tokens = [token for token in tokens if not is_placeholder(token)]
        if type(self.tokenizer_) is not llama_cpp.LlamaTokenizer:
            return bytes(super().detokenize(tokens, prev_tokens=prev_tokens, special=special))
        text = token_bytes(self._model.vocab, tokens, special)
        # as upstream: LLaMA 1 puts a space after the beginning of a text
        return text[1:] if text[:1] == b" " and tokens[:1] == [self.token_bos()] else text

    def close(self) -> None:
        """Free the model and its context. A decode of another thread ends with an error before, an open stream at its
        next step; what this thread is in the middle of, if a callback closes, ends before, too. Safe for a model that
        failed to load, and to repeat."""
        guard, engine = self._guard, self._engine
        if guard is None or engine is None:
            self._free()
        else:
            guard.close(lambda: engine.skip.set_abort(True), self._free)

    def _free(self) -> None:
        self._engine = None
        if isinstance(getattr(self, "draft_model", None), Draft):
            self.draft_model.llm.close()
        self._sampler = None  # it may hold a grammar, which knows the vocabulary
        if hasattr(self, "_stack"):
            super().close()
            for freed in (self._model, self._ctx, self._batch) if self._guard is not None else ():
                freed.__class__ = Closed

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), "skip": str(self._policy), "profile": self._profile_path}
        state |= {"low_memory": self._low_memory, "kernels": self._kernels, "seed": self._own_seed}
        state |= {"chat_template": self._chat_template, "mmproj": self._mmproj}
        if isinstance(self.draft_model, Draft):
            state["draft_model"] = self.draft_model.llm.model_path
        if self._lossless is not None:
            state |= {"draft_model": None, "lossless": "always" if self._lossless.always else True}
        if self._pace is None:
            return state
        pace = {"target_tps": self._pace.target_tps, "max_skip": self._pace.max_skip}
        return {**state, "skip": str(self._pace_from), **pace}
