"""What was decided, counted: the frozen results of Llama.skip_stats() and Llama.take_trace()."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SkipStats", "SkipTrace"]


@dataclass(frozen=True)
class SkipStats:
    """FFN blocks and attention sublayers evaluated and skipped since the model was loaded or the statistics were reset.

    Only what was decoded under a policy other than `off` counts. In the last layer llama.cpp computes the FFN only of
    the tokens whose logits are asked for, so only those count there; of attention every token counts in every layer.
    """

    skip: str  # the policy in force now
    n_tokens: int  # generated tokens
    evaluated: tuple[int, ...]  # by layer, generated tokens
    skipped: tuple[int, ...]
    n_prompt: int  # prompt tokens
    prompt_evaluated: tuple[int, ...]
    prompt_skipped: tuple[int, ...]
    attention_evaluated: tuple[int, ...] = ()  # by layer, generated tokens
    attention_skipped: tuple[int, ...] = ()
    prompt_attention_evaluated: tuple[int, ...] = ()
    prompt_attention_skipped: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Skipped / all FFN blocks of generated tokens, 0 to 1; 0 if there were none."""
        return _ratio(sum(self.skipped), sum(self.evaluated))

    @property
    def prompt_rate(self) -> float:
        """Skipped / all FFN blocks of prompt tokens, 0 to 1."""
        return _ratio(sum(self.prompt_skipped), sum(self.prompt_evaluated))

    @property
    def per_layer(self) -> tuple[float, ...]:
        """The same for each layer."""
        return tuple(_ratio(s, e) for s, e in zip(self.skipped, self.evaluated, strict=True))

    @property
    def attention_rate(self) -> float:
        """Skipped / all attention sublayers of generated tokens, 0 to 1."""
        return _ratio(sum(self.attention_skipped), sum(self.attention_evaluated))

    @property
    def prompt_attention_rate(self) -> float:
        """Skipped / all attention sublayers of prompt tokens, 0 to 1."""
        return _ratio(sum(self.prompt_attention_skipped), sum(self.prompt_attention_evaluated))

    @property
    def attention_per_layer(self) -> tuple[float, ...]:
        """The same for each layer."""
        return tuple(_ratio(s, e) for s, e in zip(self.attention_skipped, self.attention_evaluated, strict=True))


def _ratio(skipped: int, evaluated: int) -> float:
    return skipped / (skipped + evaluated) if skipped else 0.0


@dataclass(frozen=True)
class SkipTrace:
    """The decisions for n traced tokens, oldest first."""

    seq_ids: npt.NDArray[np.int32]  # [n]
    positions: npt.NDArray[np.int32]  # [n]
    skipped: npt.NDArray[np.bool_]  # [n, n_layer]
    similarity: npt.NDArray[np.float32]  # [n, n_layer] cos(x, z) if it was tested, a profile's score, else NaN
    attention: npt.NDArray[np.bool_]  # [n, n_layer] whether the attention was skipped
    attention_similarity: npt.NDArray[np.float32]  # [n, n_layer] as similarity

    def __len__(self) -> int:
        return len(self.positions)
