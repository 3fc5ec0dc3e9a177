"""pyskip as a model of EleutherAI's lm-evaluation-harness (extra `pyskip[lm-eval]`): `lm_eval --model pyskip`.

Harnesses newer than 0.4.13 find PyskipLM by the entry point `lm_eval.models` of pyproject.toml. For 0.4.13, which knows
its own models only, `python -m pyskip.lm_eval` is the harness's command line with this model registered.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .binding.library import BUILD
from .errors import PyskipError
from .evaluation.evaluate import ffn_bytes_saved
from .evaluation.scorer import Scorer
from .models import resolve
from .models.gguf_info import inspect
from .policy import Policy, parse_skip
from .runtime.decoding import decoding_arms
from .runtime.generation import Generation
from .runtime.llama import Llama

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import has_bos_prefix, maybe_truncate, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise (SystemExit if __name__ == "__main__" else ImportError)(
        f"pyskip: lm-eval is not installed (no module {missing.name}): pip install 'pyskip[lm-eval]'"
    ) from missing

__all__ = ["PyskipLM"]

BATCH = 256  # tokens decoded at a time: bounds the logits that are held
IGNORED = ("batch_size", "max_batch_size", "device", "trust_remote_code")  # the harness gives them to every model
TAKEN = ("do_sample", "max_gen_toks", "temperature", "until")

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # its text, context, continuation

_log = logging.getLogger("lm_eval.models.pyskip")  # under the harness's own, which shows it


class PyskipLM(TemplateLM):  # type: ignore[misc]
    """A GGUF model under a skip policy. The arguments are those of `--model_args`.

    path: of the model, or `demo`.
    skip, profile, kernels: as for pyskip.Llama.
    n_ctx: tokens that the model sees at most. Default: 4096, or the model's if that is less.
    n_threads: default: the physical cores that the process may use.

    Every token of a likelihood request counts as generated from its first on, as in `pyskip eval`; the context of
    generate_until is a prompt, as in `pyskip generate`. Requests longer than n_ctx lose their beginning, with a
    warning. What a request yields does not depend on the others.

    Raises PyskipError for arguments that are missing or not known, and for a request that cannot fit; the rest as
    pyskip.Llama.
    """

    max_gen_toks = 256  # as all models of the harness

    def __init__(
        self,
        path: str | None = None,
        skip: str | float | Policy = "off",
        profile: str | None = None,
        kernels: str = "fast",
        n_ctx: int | None = None,
        n_threads: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(others.keys() - set(IGNORED))
        if unknown:
            raise PyskipError(
                f"model_args has {', '.join(unknown)}, expected path, skip, profile, kernels, n_ctx and n_threads only"
            )
        if path is None:
            raise PyskipError("model_args has no path, expected path=MODEL.gguf or path=demo")
        if n_ctx is not None and (not isinstance(n_ctx, int) or n_ctx < 1):
            raise PyskipError(f"n_ctx is {n_ctx!r}, expected a whole number from 1")
        policy, file = parse_skip(skip), resolve(str(path))
        info = inspect(file)
        self.max_length: int = n_ctx or info.default_n_ctx
        self._fingerprint = info.fingerprint
        self._n_batch = min(BATCH, self.max_length + 1)
        self.llm = Llama(
            file,
            skip=policy,
            profile=profile,
            kernels=kernels,
            n_ctx=self.max_length + 1,  # the last token of a request is scored, never seen
            n_batch=self._n_batch,
            n_ubatch=self._n_batch,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        self._n_tokens, self._skipped = 0, np.zeros(2 * self.llm.engine.skip.n_layer, np.int64)  # FFNs, then attention

    # Tokens

    @property
    def tokenizer_name(self) -> str:
        """Names the template in the harness's cache of requests."""
        return self._fingerprint

    @property
    def eot_token_id(self) -> int:
        return int(self.llm.token_eos())

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = int(self.llm.token_bos())
        return self.eot_token_id if bos == -1 else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """With BOS if the vocabulary wants one and neither the text nor the caller says otherwise."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self._text(self.prefix_token_id) or None)
        return list(self.llm.tokenize(string.encode(), add_bos=add_special_tokens, special=True))

    def _text(self, token: int) -> str:
        return self.llm.detokenize([token], special=True).decode("utf-8", "replace") if token != -1 else ""

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own; it has no others."""
        return self._template() if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation by the model's own template; without a prompt for an answer, its last message is open."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        formatter = Jinja2ChatFormatter(
            self._template(),
            eos_token=self._text(self.llm.token_eos()),
            bos_token=self._text(self.llm.token_bos()),
            add_generation_prompt=add_generation_prompt,
        )
        try:
            prompt = str(formatter(messages=chat_history).prompt)  # type: ignore[arg-type]
        except Exception as error:  # templates raise what they like, for instance for a system message
            raise PyskipError(f"the model's chat template refuses these messages ({error}): change them") from error
        if add_generation_prompt:
            return prompt
        last = chat_history[-1]["content"].strip()
        return prompt[: prompt.rindex(last) + len(last)]

    def _template(self) -> str:
        template: str | None = self.llm.metadata.get("tokenizer.chat_template")
        if template is None:
            raise PyskipError(f"{self.llm.model_path}: no chat template, expected one: omit --apply_chat_template")
        return template

    # Likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding yields it."""
        fitted = [self._fitted(context, continuation) for _, context, continuation in requests]
        answers: dict[int, tuple[float, bool]] = {}
        with decoding_arms(self.llm, [self.llm.skip], self._n_batch) as (decoder, arms):
            decoder.begin(arms[-1])
            scorer = Scorer(decoder, self._n_batch, self.llm.n_vocab())
            order = sorted(range(len(requests)), key=fitted.__getitem__)  # equal beginnings follow one another
            for i in tqdm(order, desc="Running loglikelihood requests", disable=disable_tqdm):
                answers[i] = scorer.score(*fitted[i])
                if requests[i][0] is not None:  # else a window of a text
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
            self._n_tokens += arms[-1].n_tokens
            self._skipped += arms[-1].skipped
        self._tell()
        return [answers[i] for i in range(len(requests))]

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """The tokens of a request and where the continuation starts, cut from the left as all models of the harness
        cut them."""
        if not 0 < len(continuation) <= self.max_length:
            raise PyskipError(
                f"a continuation has {len(continuation)} tokens, expected 1 to {self.max_length}: raise n_ctx, or "
                "see that it has text of its own"
            )
        tokens = (context or [self.prefix_token_id]) + continuation
        excess = len(tokens) - (self.max_length + 1)
        if excess > 0:
            _log.warning(
                f"context ({len(context)}) and continuation ({len(continuation)}) exceed {self.max_length} tokens: "
                f"the first {excess} are left out"
            )
            tokens = tokens[excess:]
        return tokens, len(tokens) - len(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of n_ctx tokens; before the first stands BOS (EOS without)."""
        texts = [request.args[0] for request in requests]
        windows = [
            (i, make_disjoint_window(window))
            for i, text in enumerate(texts)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        answers = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm)
        totals = [0.0] * len(texts)
        for (i, _), (log_p, _) in zip(windows, answers, strict=True):
            totals[i] += log_p
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    # Texts

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, up to a stop string, the end that the model sets, or max_gen_toks."""
        prompts = [self._prompt(*request.args) for request in requests]
        texts: dict[int, str] = {}
        held: list[int] = []
        self.llm.reset()
        for i in tqdm(
            sorted(range(len(prompts)), key=prompts.__getitem__),
            desc="Running generate_until requests",
            disable=disable_tqdm,
        ):
            # of the last prompt what this one shares stays, in whole batches, and never what was generated
            shared = min(self.llm.longest_token_prefix(held, prompts[i]), len(prompts[i]) - 1)
            self.llm.n_tokens = shared - shared % self._n_batch
            texts[i] = self._generate(prompts[i], self._settings(requests[i].args[1]))
            self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
            held = prompts[i]
        self._tell()
        return [texts[i] for i in range(len(prompts))]

    def _settings(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        unknown = sorted(settings.keys() - set(TAKEN))
        if unknown:
            warning_once(_log, f"generation arguments that pyskip does not know: {', '.join(unknown)}")
        if settings["max_gen_toks"] >= self.max_length:
            raise PyskipError(
                f"max_gen_toks is {settings['max_gen_toks']}, expected less than the context of {self.max_length}: "
                "raise n_ctx, or lower it (--gen_kwargs max_gen_toks=N)"
            )
        return settings

    def _prompt(self, context: str, gen_kwargs: dict[str, Any]) -> list[int]:
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        cut, _ = maybe_truncate(tokens, self._settings(gen_kwargs)["max_gen_toks"], self.max_length)
        return list(cut)

    def _generate(self, prompt: list[int], settings: dict[str, Any]) -> str:
        temp = settings.get("temperature", 1.0) if settings["do_sample"] else 0.0
        seed = random.getrandbits(31) if temp > 0 else None  # of Python's generator, which the harness's --seed seeds
        stops = [stop for stop in settings["until"] if stop]
        generation = Generation(self.llm, prompt, max_tokens=settings["max_gen_toks"], temp=temp, seed=seed)
        text = ""
        for piece in generation:
            text += piece
            if any(stop in text for stop in stops):
                break
        skip = generation.answer().skip
        self._n_tokens += skip.n_tokens
        self._skipped += (*skip.skipped, *skip.attention_skipped)
        return str(postprocess_generated_text(text, stops, None))

    # What was skipped

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: the policy, and what it skipped of all tokens so far that were
        scored or generated."""
        every = [float(n) / self._n_tokens if n else 0.0 for n in self._skipped]
        rates, attention = every[: len(every) // 2], every[len(every) // 2 :]
        return {
            "skip": str(self.llm.skip),
            "skip_rate": float(np.mean(rates)),
            "skip_rates": rates,
            "ffn_bytes_saved": ffn_bytes_saved(self.llm, self.llm.skip, rates),
            "attention_skip_rate": float(np.mean(attention)),
            "n_ctx": self.max_length,
            "model_fingerprint": self._fingerprint,
            "build": BUILD,
        }

    def _tell(self) -> None:
        info = self.get_model_info()
        _log.info(
            f"skip {info['skip']}: {info['skip_rate']:.1%} of FFN blocks skipped, {info['ffn_bytes_saved']:.1%} of FFN "
            "bytes saved"
        )


# Imported as the entry point's module, the harness holds the name already.
if "pyskip" not in model_registry:
    model_registry.register("pyskip")(PyskipLM)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except PyskipError as error:
        sys.exit(f"pyskip: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
