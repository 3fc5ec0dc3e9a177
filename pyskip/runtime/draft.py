"""A small model that drafts for a large one (speculative decoding): a few tokens ahead, by the likeliest each.

`pyskip.Llama(draft_model=)` asks for drafts, decodes them in one batch with the token before them, and keeps those that
it would have sampled itself: the text is what it would be alone. On the server llama.cpp's common/speculative.cpp does
the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from ..binding.library import llama_cpp
from ..errors import ModelLoadError
from .cached import Cached
from .media import is_placeholder

__all__ = ["N_DRAFT", "Draft", "check_cuts"]

N_DRAFT = 3  # common_params_speculative_draft's n_max
N_MORE = 128  # tokens that one vocabulary may have more than the other: SPEC_VOCAB_MAX_SIZE_DIFFERENCE
FIRST = 5  # token that has to be the same: SPEC_VOCAB_CHECK_START_TOKEN_ID


class Draft(LlamaDraftModel):
    """Owns the model that drafts. Raises ModelLoadError for one with another vocabulary than the target's, and for one
    whose memory cannot be cut."""

    def __init__(self, llm: Cached, target: Cached) -> None:
        self.llm = llm
        _check_vocabulary(llm, target)
        check_cuts(llm, "the draft")

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """Up to N_DRAFT tokens behind input_ids [n]; none if the draft's context is full, or behind images, which it
        cannot see."""
        llm = self.llm
        if len(input_ids) + N_DRAFT > llm.n_ctx() or any(map(is_placeholder, input_ids.tolist())):
            return np.empty(0, np.intc)
        known = llm._input_ids[: len(input_ids) - 1]  # the last one is decoded again, for its logits
        differs = np.nonzero(known != input_ids[: len(known)])[0]
        llm.n_tokens = int(differs[0]) if len(differs) else len(known)
        llm.eval(input_ids[llm.n_tokens :].tolist())
        drafted: list[int] = []
        while True:
            token = _likeliest(llm)
            drafted.append(token)
            if len(drafted) == N_DRAFT or llm.engine.is_eog(token):
                return np.array(drafted, np.intc)
            llm.eval([token])


def _likeliest(llm: Cached) -> int:
    """The next token, by the logits of the last decode."""
    logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return int(np.ctypeslib.as_array(logits, (llm.engine.n_vocab,)).argmax())


def check_cuts(llm: Cached, which: str) -> None:
    """Raises ModelLoadError if tokens that were decoded cannot be taken back: a recurrent state."""
    model = llm.engine.model
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model) or llm.engine.has_encoder:
        raise ModelLoadError(
            f"{llm.model_path}: {which} is a recurrent model or has an encoder ({llm.engine.info.architecture}), "
            "expected one whose KV cache can be cut: go without --draft (draft_model)"
        )


def _check_vocabulary(draft: Cached, target: Cached) -> None:
    """As common_speculative_are_compatible()."""
    ours, theirs = target.engine.vocab, draft.engine.vocab
    difference = ""
    asked = ["type", "get_add_bos", "get_add_eos"]
    asked += [end for end in ("bos", "eos") if getattr(llama_cpp, f"llama_vocab_get_add_{end}")(ours)]
    for what in asked:
        ask = getattr(llama_cpp, f"llama_vocab_{what}")
        if ask(ours) != ask(theirs):
            difference = f"another {what.removeprefix('get_')}"
    n = min(target.engine.n_vocab, draft.engine.n_vocab)
    if max(target.engine.n_vocab, draft.engine.n_vocab) - n > N_MORE:
        difference = f"{draft.engine.n_vocab} tokens, and not {target.engine.n_vocab}"
    get_text = llama_cpp.llama_vocab_get_text
    other = next((i for i in range(FIRST, n) if get_text(ours, i) != get_text(theirs, i)), None)
    if other is not None:
        difference = f"another token {other}"
    if difference:
        raise ModelLoadError(
            f"{draft.model_path}: found another vocabulary ({difference}), expected that of {target.model_path}: a "
            "draft is a smaller model of the same family"
        )
