"""Skip policies as typed values, and the strings that stand for them in the CLI and in Python.

    off
    cosine:threshold=0.98,run=1,cold_start=4,cold_end=4,warmup=16
    static:5,14,25
    static:5,attn=12+13             the FFN of layer 5, the attention of layers 12 and 13
    static:5,14,stand_in=1          with the profile's stand-ins in their place
    static:n=4,by=cosine            4 sublayers that the profile names, with its stand-ins
    0.25                            the model's profile: 25 % of the FFN blocks of generated tokens, held
    profile:rate=0.25,hold=0        the same by a fixed threshold; a given text skips more or less
    profile:rate=0.25,prompt=0.2    and 20 % of those of the prompt
    profile:error=0.12,prefill=1    a threshold by predicted relative error; prompts too
    adaskip:n=8                     the 8 sublayers, attention and FFN, that change the prompt least
    prompt:rate=0.25                25 % of the FFN blocks, by what the profile's gates say of the prompt
    random:rate=0.25,seed=1         a coin for each token and layer, to compare with

``parse_skip(str(policy)) == policy`` for every policy but Custom, which is code: no specification stands for it,
so that no stranger can write one.

A policy is one file here: its values and their checks, what it needs and decides (Policy), and the fields of struct
pyskip_policy (native/include/pyskip.h) that it fills. `parse` lists those that have a specification.
"""

from __future__ import annotations

from .adaskip import AdaSkip
from .base import MAX_ERROR, Policy
from .cosine import Cosine
from .custom import Custom
from .off import Off
from .parse import parse_skip
from .profiled import Profiled
from .prompted import Prompted
from .random import Random
from .static import Static

__all__ = [
    "MAX_ERROR",
    "AdaSkip",
    "Cosine",
    "Custom",
    "Off",
    "Policy",
    "Profiled",
    "Prompted",
    "Random",
    "Static",
    "parse_skip",
]
