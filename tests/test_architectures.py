"""Invariants 1 to 6 on a tiny random model of every architecture that llama.cpp can run.

Each test gathers what is wrong by model, so that a failure names them all.
"""

from __future__ import annotations

from typing import Any

import pytest
from architectures import N_TOKENS
from collected import MAKE_ARCHS, NO_ATTENTION, NO_BLOCK, NO_TEXT, NOT_COVERED, NOT_MADE, Collected, collect
from conftest import REFERENCE

N_COUNTED = 2 * N_TOKENS  # one batch and as many steps
NOISY = {"gemma3n"}  # unpatched, its logits differ by 9 % of their spread: only the decisions are compared


@pytest.fixture(scope="module")
def collected() -> Collected:
    for needed in (MAKE_ARCHS, REFERENCE / "libllama.so"):
        if not needed.exists():
            pytest.fail(f"{needed} is not there: run the tests with `make test`, which builds it")
    return collect(REFERENCE)


def test_every_architecture_is_made_and_runs(collected: Collected) -> None:
    assert {name for name, said in collected.made.items() if said != "made"} == set(NOT_MADE)
    assert len(collected.found) > 150
    errors = {name: record["error"] for name, record in collected.found.items() if "error" in record}
    errors |= {name: record["error"] for name, record in collected.reference.items() if "error" in record}
    assert errors == {}
    assert [name for name, record in collected.found.items() if not record["finite"]] == []


def test_off_equals_unpatched(collected: Collected) -> None:
    """Invariant 1, before any policy and after all of them; encoders too."""
    differ = [name for name, record in collected.found.items() if record["off"] != collected.reference[name]["off"]]
    differ += [name for name, record in collected.able().items() if record["off_again"] != record["off"]]
    assert differ == []
    assert len({record["off"] for record in collected.found.values()}) > 100  # they are not all the same


def test_static_equals_zeroed_ffn_down(collected: Collected) -> None:
    """Invariant 2, layer by layer; and each of them matters."""
    differ, idle = [], []
    for name, record in collected.able().items():
        assert set(record["static"]) == set(collected.reference[name]["zeroed"])
        for il, digest in record["static"].items():
            if digest != collected.reference[name]["zeroed"][il]:
                differ.append((name, il))
            if digest == record["off"]:
                idle.append((name, il))
    assert differ == []
    assert idle == []


def test_static_attention_equals_zeroed_attn_output(collected: Collected) -> None:
    """The same for attention, of which K and V are computed."""
    differ, idle = [], []
    for name, record in collected.able().items():
        assert set(record["static_attention"]) == set(collected.reference[name]["zeroed_attention"])
        for il, digest in record["static_attention"].items():
            if digest != collected.reference[name]["zeroed_attention"][il]:
                differ.append((name, il))
            if digest == record["off"]:
                idle.append((name, il))
    assert differ == []
    assert idle == []


def test_every_attention_is_found_or_known(collected: Collected) -> None:
    able = collected.able()
    missed = {n: r["attention"] for n, r in able.items() if r["attention"] != r["attention_layers"]}
    assert set(missed) == set(NO_ATTENTION)
    assert not any(missed.values())  # all of a model's or none


def test_every_attention_that_is_found_has_a_gate(collected: Collected) -> None:
    """But the last layer's."""
    wrong = {}
    for name, record in collected.able().items():
        expected = [il for il in record["attention"] if il + 1 < record["n_layer"]]
        if record["under"].get("attention gates", {"attention_gated": []})["attention_gated"] != expected:
            wrong[name] = record["under"].get("attention gates")
    assert wrong == {}


def test_gates_that_always_run_are_dense(collected: Collected) -> None:
    """Invariant 3, under the cosine policy and under a profile."""
    for key in ("cosine_never", "profile_never", "attention_never"):
        assert [
            name for name, record in collected.able().items() if record.get(key, record["off"]) != record["off"]
        ] == []


def test_one_batch_equals_single_steps(collected: Collected) -> None:
    """Invariant 4: the same decisions, and logits that differ by float noise."""
    wrong = {}
    for name, record in collected.able().items():
        for policy, compared in record["under"].items():
            if compared["n_differ"] > 0 or not compared["noise"] <= max(1e-3, 10 * record["noise"]):
                wrong[name, policy] = compared
    assert wrong == {}
    noisy = {name for name, record in collected.able().items() if not record["noise"] < 1e-3}
    assert noisy <= NOISY, "dense"


def skips_some(record: dict[str, Any], policy: str) -> bool:
    n_skipped = sum(record["under"][policy]["skipped"])
    if policy == "attention":
        return bool(sum(record["under"][policy]["attention_skipped"]) == N_COUNTED * len(record["attention"]))
    if policy == "attention gates":
        skipped = sum(record["under"][policy]["attention_skipped"])
        return bool(n_skipped == 0 < skipped < N_COUNTED * len(record["attention"]))
    if policy == "static":
        return bool(n_skipped == N_COUNTED * len(record["layers"]))
    if policy == "cosine" and len(record["layers"]) == 1:
        return bool(n_skipped == 0)  # a block decides the next one
    return bool(0 < n_skipped < N_COUNTED * len(record["layers"]))


def test_evaluated_and_skipped_are_all(collected: Collected) -> None:
    """Invariant 6; and every policy both skips and runs."""
    wrong = {}
    for name, record in collected.able().items():
        for policy, compared in record["under"].items():
            others = [s for il, s in enumerate(compared["skipped"]) if il not in record["layers"]]
            others += [s for il, s in enumerate(compared["attention_skipped"]) if il not in record["attention"]]
            all_of_them = [N_COUNTED] * record["n_layer"]
            sums = compared["sums"], compared["attention_sums"]
            if sums != (all_of_them, all_of_them) or any(others) or not skips_some(record, policy):
                wrong[name, policy] = compared
    assert wrong == {}


def test_every_ffn_is_found(collected: Collected) -> None:
    """Each layer that has an FFN can skip, by a profile's gate too; models that cannot are known, with a reason."""
    able = collected.able()
    assert {n: r["layers"] for n, r in able.items() if r["layers"] != r["ffn_layers"]} == {}
    assert {n: r["layers"] for n, r in able.items() if r["layers"] != r["under"]["profile"]["gated"]} == {}
    assert not any(record["encoder"] for record in able.values())
    unable = {name for name, record in collected.found.items() if "layers" not in record and not record["encoder"]}
    assert unable == set(NOT_COVERED) | set(NO_BLOCK)
    covered, of = collected.coverage()
    assert covered >= 0.95 * of


def test_refusals_are_clear(collected: Collected) -> None:
    for name, record in collected.found.items():
        if "layers" not in record:
            cause = "expected a decoder" if record["encoder"] else "no feed-forward block in the graph"
            assert cause in record["policy_error"], name
            assert record["architecture"] in record["policy_error"]
            assert "skip off" in record["policy_error"]


def test_every_use_ends_with_an_answer_or_an_error_of_one_line(collected: Collected) -> None:
    """info, generate, eval, calibrate: whoever can generate does, whoever can skip is calibrated."""
    uses = {name: record["use"] for name, record in collected.found.items()}
    assert {name: use["error"] for name, use in uses.items() if "error" in use} == {}
    refused = {what: {n: u[what]["refused"] for n, u in uses.items() if "refused" in u[what]} for what in uses["llama"]}
    assert not any("\n" in line for lines in refused.values() for line in lines.values())
    able, encoders = set(collected.able()), {name for name, record in collected.found.items() if record["encoder"]}
    assert set(refused["info"]) == set(uses) - able
    assert set(refused["generate"]) == encoders
    assert set(refused["eval"]) == encoders | set(NO_TEXT)
    assert set(refused["calibrate"]) == set(uses) - able | set(NO_TEXT)
    assert {n: u["info"]["layers"] for n, u in uses.items() if n in able} == {
        n: r["layers"] for n, r in collected.able().items()
    }
    assert all(use["generate"]["n"] > 0 for name, use in uses.items() if name not in encoders)
    assert all(use["eval"]["ppl"] > 1 for name, use in uses.items() if name not in refused["eval"])
    calibrated = [use["calibrate"] for name, use in uses.items() if name not in refused["calibrate"]]
    assert min(chain["n_points"] for chain in calibrated) > 0
    assert sum(chain["n_points"] > 1 for chain in calibrated) > 0.9 * len(calibrated)
    assert sum(chain["skipped"] > 0 for chain in calibrated) > 0.9 * len(calibrated)
