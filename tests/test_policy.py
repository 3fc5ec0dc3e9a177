"""Skip specifications: every string has one meaning, every policy one string, every mistake one line."""

import math
from pathlib import Path

import pytest

import pyskip
from pyskip import AdaSkip, Cosine, Off, Policy, Profiled, Prompted, Random, Static, parse_skip


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ("off", Off()),
        ("cosine", Cosine()),
        ("cosine:", Cosine()),
        ("cosine:threshold=0.9,run=0", Cosine(threshold=0.9, run=0)),
        ("cosine:warmup=0,cold_start=1,cold_end=2,threshold=-1,run=3", Cosine(-1.0, 3, 1, 2, 0)),
        ("static:5,14,25", Static((5, 14, 25))),
        ("static:25, 5,14,5", Static((5, 14, 25))),
        ("static:attn=13+12+13", Static(attention=(12, 13))),
        ("static:5, attn=12+13,7", Static((5, 7), (12, 13))),
        ("static:5,stand_in=1", Static((5,), stand_in=True)),
        ("static:n=4", Static(n=4)),
        ("static:by=cosine, n=4,stand_in=0", Static(n=4, by="cosine", stand_in=False)),
        (" off ", Off()),
        ("0.25", Profiled(rate=0.25)),
        ("profile", Profiled()),
        ("profile:error=0.12", Profiled(error=0.12)),
        ("profile:rate=0.3,prefill=1", Profiled(rate=0.3, prefill=True)),
        ("profile:rate=0.25,warmup=0", Profiled(rate=0.25, warmup=0)),
        ("profile:warmup=3", Profiled(warmup=3)),
        ("profile:rate=0.25,hold=1", Profiled(rate=0.25)),
        ("profile:rate=0.25,hold=0", Profiled(rate=0.25, hold=False)),
        ("profile:rate=0.25,hold=0,prompt=0.2", Profiled(rate=0.25, hold=False, prompt=0.2)),
        ("profile:error=0.1,hold=0", Profiled(error=0.1)),
        ("random:rate=0.5,seed=7,warmup=0,stand_in=1", Random(0.5, 7, 0, True)),
        ("profile:rate=0.25,attn=0.2", Profiled(rate=0.25, attn=0.2)),
        ("random:attn=0.2", Random(attn=0.2)),
        ("adaskip", AdaSkip()),
        ("adaskip:n=3", AdaSkip(3)),
        ("prompt", Prompted()),
        ("prompt:rate=0.4", Prompted(0.4)),
    ],
)
def test_meaning_and_round_trip(spec: str, policy: Policy) -> None:
    assert parse_skip(spec) == policy
    assert parse_skip(str(policy)) == policy
    assert parse_skip(policy) is policy


def test_a_rate_for_prompts_goes_with_a_profile() -> None:
    assert str(parse_skip("0.25").with_prompt(0.2)) == "profile:rate=0.25,prompt=0.2"
    assert str(parse_skip("profile:rate=0.25,prefill=1").with_prompt(0.1)) == "profile:rate=0.25,prompt=0.1"
    assert parse_skip("off").with_prompt(0.2) == Profiled(rate=0.0, prompt=0.2)
    with pytest.raises(pyskip.PolicyError, match="leave one of them out"):
        parse_skip("static:3").with_prompt(0.2)


def test_what_of_a_prompt_may_be_used_again() -> None:
    rules = [parse_skip(spec).prompt_rule for spec in ("0.25", "profile:error=0.1,prefill=1", "profile:prompt=0.2")]
    assert rules == ["profile", "profile:error=0.1,prefill=1", ""]
    specs = ("off", "0.25", "static:1", "adaskip:n=3", "prompt")
    assert [spec for spec in specs if parse_skip(spec).measures_prompt] == ["adaskip:n=3", "prompt"]


def test_defaults_are_the_contract() -> None:
    assert str(Cosine()) == "cosine:threshold=0.98,run=1,cold_start=4,cold_end=4,warmup=16"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "expected off"),
        ("Off", "expected off"),
        ("off:1", "expected off"),
        ("cosin", "expected off"),
        ("x" * 10000, "expected off"),
        ("cosine:treshold=0.9", "threshold"),
        ("cosine:0.9", "key=value"),
        ("cosine:run=1,run=2", "twice"),
        ("cosine:run=-1", "whole number"),
        ("cosine:run=1.5", "whole number"),
        ("cosine:run=99999999999999999999", "whole number"),
        ("cosine:run=4294967296", "whole number"),
        ("cosine:run=\u0661", "whole number"),
        ("cosine:threshold=nan", "finite"),
        ("cosine:threshold=inf", "finite"),
        ("cosine:threshold=high", "number"),
        ("cosine:,", "key=value"),
        ("static:", "no layer"),
        ("static", "no layer"),
        ("static:1,,2", "whole number"),
        ("static:a", "whole number"),
        ("static:-1", "whole number"),
        ("static:attn=", "whole number"),
        ("static:attn=1+", "whole number"),
        ("static:attn=1,attn=2", "once"),
        ("static:ffn=1", "attn=LAYER"),
        ("static:n=0", "from 1"),
        ("static:n=x", "whole number"),
        ("static:n=2,3", "n beside layers"),
        ("static:n=2,attn=3", "n beside layers"),
        ("static:n=2,n=3", "once"),
        ("static:n=2,by=luck", "expected loss, cosine or norm"),
        ("static:2,by=norm", "expected n=N"),
        ("static:2,stand_in=2", "expected 0 or 1"),
        ("static:stand_in=1", "no layer"),
        ("1.5", "expected off"),
        ("profile:error=-1", "from 0"),
        ("profile:error=nan", "from 0"),
        ("profile:rate=1.1", "from 0 to 1"),
        ("profile:rate=0.1,error=0.1", "one of them"),
        ("profile:prefill=yes", "0 or 1"),
        ("profile:hold=2", "0 or 1"),
        ("profile:prompt=1.5", "0 to 1"),
        ("profile:prompt=0.2,prefill=1", "expected one of them"),
        ("profile:threshold=1", "key=value"),
        ("profile:warmup=-1", "whole number"),
        ("random:rate=2", "from 0 to 1"),
        ("random:rate=x", "number"),
        ("random:seed=-1", "whole number"),
        ("nan", "expected off"),
        ("adaskip:n=0", "expected 1"),
        ("adaskip:n=-1", "whole number"),
        ("adaskip:8", "key=value"),
        ("prompt:rate=1.5", "from 0 to 1"),
        ("prompt:n=3", "key=value"),
    ],
)
def test_mistakes(spec: str, told: str) -> None:
    with pytest.raises(pyskip.PolicyError) as caught:
        parse_skip(spec)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("spec", [0.25, 0, 1])
def test_a_number_is_a_rate(spec: float) -> None:
    assert parse_skip(spec) == Profiled(rate=float(spec))


@pytest.mark.parametrize("spec", ["0.25", "profile", "profile:error=0.12", "random:rate=0.5,stand_in=1", "prompt"])
def test_what_needs_a_profile_says_so(tiny: Path, spec: str) -> None:
    with pytest.raises(pyskip.ProfileError, match=r"needs a profile and .* has none .*pyskip calibrate"):
        pyskip.Llama(tiny, skip=spec, n_ctx=64, verbose=False)


@pytest.mark.parametrize(
    "values", [{"threshold": math.nan}, {"run": -1}, {"warmup": True}, {"cold_end": 1.0}, {"threshold": "x"}]
)
def test_typed_values_are_checked_too(values: dict[str, object]) -> None:
    with pytest.raises(pyskip.PolicyError):
        Cosine(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"rate": "x"}, {"rate": True}, {"error": math.inf}, {"error": b"1"}, {"warmup": -1}]
)
def test_typed_values_of_a_profile_too(values: dict[str, object]) -> None:
    with pytest.raises(pyskip.PolicyError):
        Profiled(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, True, [1, 2], b"off"])
def test_other_types(value: object) -> None:
    with pytest.raises(pyskip.PolicyError):
        parse_skip(value)  # type: ignore[arg-type]
