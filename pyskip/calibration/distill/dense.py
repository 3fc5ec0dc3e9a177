"""The dense model in torch, as transformers loads it from GGUF, frozen; its FFN blocks can be replaced."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from ...errors import PyskipError

__all__ = ["Block", "Dense", "Inner"]

# By config.model_type. All of them normalise the stream, compute activation(gate) * up, then down; those with a
# post_feedforward_layernorm normalise what comes out. Others name or order things otherwise.
FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
NAMES = "LLaMA, Mistral, SmolLM3, Qwen2, Qwen2.5, Qwen3, Gemma 2, Gemma 3 and Phi-3"
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "relu": "relu"}

Inner = Callable[[torch.Tensor], torch.Tensor]  # a block itself: what it reads -> what is added to the stream
Block = Callable[[int, torch.Tensor, torch.Tensor, Inner], torch.Tensor]  # of layer, x, xn, the block itself


class Dense:
    """Raises PyskipError for a model that cannot be loaded or trained."""

    def __init__(self, path: str | os.PathLike[str], device: torch.device | str) -> None:
        self.path, self.device = str(path), torch.device(device)
        self.is_narrow = self.device.type == "cuda" or is_bf16_faster()
        self.model = self._load()
        self.config: Any = self.model.config
        self.layers: list[Any] = list(self.model.model.layers)
        self.n_layer, self.n_embd = len(self.layers), int(self.config.hidden_size)
        self.activation = self._activation()
        self.has_post_norm = hasattr(self.layers[0], "post_feedforward_layernorm")
        self.n_ff = int(self.layers[0].mlp.down_proj.weight.shape[1])
        self._block: Block | None = None
        self._x: dict[int, torch.Tensor] = {}
        self._post: dict[int, Inner] = {}

    def _load(self) -> Any:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        folder, name = os.path.split(os.path.abspath(self.path))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        except Exception as error:  # transformers and what it reads files with raise what they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PyskipError(
                f"{self.path}: --distill cannot load this model ({reason}): leave --distill away"
            ) from error
        if model.config.model_type not in FAMILIES or not hasattr(model.model.layers[0].mlp, "down_proj"):
            raise PyskipError(
                f"{self.path}: found a model of the type {model.config.model_type}, --distill trains {NAMES}: "
                "leave --distill away"
            )
        return model.requires_grad_(False).eval()

    def _activation(self) -> str:
        name = getattr(self.config, "hidden_activation", None) or self.config.hidden_act
        if name not in ACTIVATIONS:
            raise PyskipError(
                f"{self.path}: found the activation {name}, --distill trains {', '.join(ACTIVATIONS)}: "
                "leave --distill away"
            )
        return ACTIVATIONS[name]

    def to_device(self) -> None:
        """If is_narrow, the frozen matrices are bf16, and the stream, norms and embeddings float32."""
        self.model.to(self.device)
        if self.is_narrow:
            self._narrow()
        self._open_blocks()

    def _narrow(self) -> None:
        head = self.model.lm_head
        if head.weight is self.model.get_input_embeddings().weight:  # which stays as it is
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)

    # Blocks

    def _open_blocks(self) -> None:
        for il, layer in enumerate(self.layers):
            mlp, post = layer.mlp, getattr(layer, "post_feedforward_layernorm", None)
            norm = layer.post_attention_layernorm if post is None else layer.pre_feedforward_layernorm
            norm.register_forward_pre_hook(lambda _, args, il=il: self._x.__setitem__(il, args[0]))
            if post is None:
                mlp.forward = self._replaceable(il, mlp.forward)
            else:
                self._post[il] = post.forward
                post.forward = self._replaceable(il, _chain(mlp.forward, post.forward))
                mlp.forward = _same

    def _replaceable(self, il: int, dense: Inner) -> Any:
        def forward(xn: torch.Tensor) -> torch.Tensor:
            x = self._x.pop(il)
            return dense(xn) if self._block is None else self._block(il, x, xn, dense)

        return forward

    def matrices(self, il: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """float32: gate and up [n_ff, n_embd], down [n_embd, n_ff]."""
        mlp = self.layers[il].mlp
        if hasattr(mlp, "gate_up_proj"):
            gate, up = mlp.gate_up_proj.weight.float().chunk(2)
        else:
            gate, up = mlp.gate_proj.weight.float(), mlp.up_proj.weight.float()
        return gate, up, mlp.down_proj.weight.float()

    def gain(self, il: int) -> torch.Tensor | None:
        """[n_embd] of a block's post-norm: what it makes of a row of root mean square 1."""
        if not self.has_post_norm:
            return None
        return self._post[il](torch.ones(self.n_embd, device=self.device)).float()

    # Passes

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_narrow):
            yield

    def stream(self, tokens: torch.Tensor, block: Block | None = None) -> torch.Tensor:
        """[n, n_window] -> what the output matrix reads [n, n_window, n_embd]."""
        self._block = block
        with self.autocast():
            return self.model.model(tokens.to(self.device), use_cache=False).last_hidden_state

    def head(self, stream: torch.Tensor) -> torch.Tensor:
        """Logits in float32."""
        with self.autocast():
            logits = self.model.lm_head(stream).float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if not cap else cap * torch.tanh(logits / cap)

    def recompute(self, is_on: bool) -> None:
        """Gradient checkpointing: activations are computed again and not kept."""
        if is_on:
            model = self.model  # transformers renamed it in a 5.x and drops the old name in 6
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.model.train(is_on)  # transformers recomputes in training mode only; these models have no dropout


def is_bf16_faster() -> bool:
    """Whether this processor multiplies bf16 matrices faster than float32 ones (AVX512_BF16, AMX, SVE): it is tried."""
    fastest = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
        times = []
        for _ in range(6):  # the first prepares
            begin = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begin)
        fastest.append(min(times))
    return fastest[1] < 0.7 * fastest[0]


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _chain(first: Any, then: Any) -> Inner:
    return lambda x: then(first(x))
