"""Depth pruning with a profile: its stand-ins under the policy static, and the sets of `calibrate --static`."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import make_profile
from raw import Raw
from test_batches import tiny_tokens
from test_profile_files import refused

import pyskip
from pyskip.calibration.depth import Place, choose, measuring
from pyskip.calibration.gather import Kind, LayerSums, gather
from pyskip.calibration.sublayer import Sublayer
from pyskip.calibration.write import add_static
from pyskip.evaluation.evaluate import evaluate_windows
from pyskip.models.profile import Profile, StaticStep
from pyskip.policy import Policy, Static, parse_skip
from pyskip.policy.static import BY

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=["gated", "linear", "none"])
def profile(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("static") / f"{request.param}.skip.gguf"
    make_profile.make_profile(
        tiny, path, stand_in=request.param, rank=32, kind="f32", attention=True, last_is_dense=True
    )
    return Profile(path)


def logits(model: Path, spec: str, profile: Profile | None, batched: bool) -> np.ndarray:
    """Of a prompt of 20 tokens and 20 that follow."""
    tokens = tiny_tokens(93, 40, 0)
    with Raw(model) as raw:
        raw.skip.set_policy(parse_skip(spec), profile)
        raw.skip.set_generated_from(0, 20)
        return raw.decode(tokens) if batched else raw.step(tokens)


@pytest.mark.parametrize("batched", [True, False])
def test_all_ffns_equal_gates_that_skip_all(tiny: Path, profile: Profile, batched: bool) -> None:
    """Gates that skip every FFN that has a stand-in, those of prompts too, are another way to the same."""
    static = logits(tiny, "static:0,1,2,3,4,stand_in=1", profile, batched)
    np.testing.assert_array_equal(static, logits(tiny, "profile:error=1e30,prefill=1,warmup=0", profile, batched))
    assert np.abs(static - logits(tiny, "static:0,1,2,3,4", profile, batched)).max() > 0.01


def test_some_of_both_equal_a_choice(tiny: Path, profile: Profile) -> None:
    """What `prompt` chose, named: the steps behind the same dense prompt are the same."""
    tokens = tiny_tokens(94, 40, 0)
    with Raw(tiny) as chosen, Raw(tiny) as named:
        chosen.skip.set_policy(parse_skip("prompt:rate=0.5"), profile)
        chosen.skip.set_generated_from(0, 20)
        chosen.step(tokens[:20])
        named.step(tokens[:20])
        a = chosen.step(tokens[20:])
        skipped = [il for il, share in enumerate(chosen.skip.stats(parse_skip("off")).per_layer) if share > 0]
        assert len(skipped) == 3
        named.skip.set_policy(parse_skip(f"static:{','.join(map(str, skipped))},stand_in=1"), profile)
        np.testing.assert_array_equal(a, named.step(tokens[20:]))


def test_attention_and_what_has_no_stand_in(tiny: Path, profile: Profile) -> None:
    """The last layer's sublayers have none and are left out bare; of attention the stand-in is a linear map."""
    plain = logits(tiny, "static:5,attn=5", profile, True)
    np.testing.assert_array_equal(logits(tiny, "static:5,attn=5,stand_in=1", profile, True), plain)
    w = {t.name: np.array(t.data) for path in (tiny, profile.path) for t in gguf.GGUFReader(path).tensors}
    with Raw(tiny, taps=("ffn_inp-", "l_out-"), exact=True) as raw:
        raw.skip.set_policy(parse_skip("static:1,attn=2+5,stand_in=1"), profile)
        raw.decode(tiny_tokens(95, 30, 0))
        x, z = (raw.tapped[name].reshape(30, -1) for name in ("l_out-1", "ffn_inp-2"))
        xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * w["blk.2.attn_norm.weight"]
        y = xn @ w["blk.2.attn_skip_down.weight"].T @ w["blk.2.attn_skip_up.weight"].T + w["blk.2.attn_skip.bias"]
        np.testing.assert_allclose(z, x + y, rtol=1e-3, atol=1e-3 * np.abs(x + y).max())


def test_one_batch_equals_single_steps(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(96, 40, 0)
    with Raw(tiny, exact=True) as one, Raw(tiny, exact=True) as single:
        for raw in (one, single):
            raw.skip.set_policy(parse_skip("static:1,3,attn=0+2,stand_in=1"), profile)
        np.testing.assert_allclose(one.decode(tokens), single.step(tokens), atol=1e-3)


@pytest.fixture
def with_sets(profile: Profile, tmp_path: Path) -> Profile:
    steps = [StaticStep(3, False, 0.1, 1.01), StaticStep(2, True, 0.2, 1.02), StaticStep(1, False, 0.3, 1.03)]
    path = tmp_path / "with.skip.gguf"
    add_static(profile.path, path, {"loss": steps, "norm": steps[::-1][:2]})
    return Profile(path)


def test_sets_of_a_profile(tiny: Path, profile: Profile, with_sets: Profile) -> None:
    assert [step.il for step in with_sets.static_sets["loss"]] == [3, 2, 1]
    assert [step.is_attention for step in with_sets.static_sets["loss"]] == [False, True, False]
    assert [round(step.ppl_ratio, 3) for step in with_sets.static_sets["norm"]] == [1.03, 1.02]
    assert set(with_sets.static_sets) == {"loss", "norm"}
    assert profile.static_sets == {}
    for spec, same in (
        ("static:n=2", "static:3,attn=2,stand_in=1"), ("static:n=3,stand_in=0", "static:1,3,attn=2"),
        ("static:n=1,by=norm", "static:1,stand_in=1"),
    ):  # fmt: skip
        found = logits(tiny, spec, with_sets, False)
        np.testing.assert_array_equal(found, logits(tiny, same, with_sets, False))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("static:n=4", "static n is 4, but the profile names 3: look for them with pyskip calibrate --static 4"),
        ("static:n=1,by=cosine", "the profile names no sublayers"),
        ("static:n=2147483647", "names 3"),
    ],
)
def test_more_than_the_profile_names(tiny: Path, with_sets: Profile, spec: str, told: str) -> None:
    with Raw(tiny) as raw, pytest.raises(pyskip.PolicyError, match=told):
        raw.skip.set_policy(parse_skip(spec), with_sets)


def test_a_copy_has_all_that_the_profile_has(profile: Profile, with_sets: Profile) -> None:
    """And what is written over itself the newer sets alone."""
    add_static(with_sets.path, with_sets.path, {"loss": [StaticStep(0, True, 0.0, 1.0)]})
    old, new = (gguf.GGUFReader(path) for path in (profile.path, with_sets.path))
    assert {key: field.contents() for key, field in old.fields.items() if key.startswith("pyskip.")}.items() <= {
        key: field.contents() for key, field in new.fields.items()
    }.items()
    assert [(t.name, t.tensor_type, t.data.tobytes()) for t in old.tensors] == [
        (t.name, t.tensor_type, t.data.tobytes()) for t in new.tensors
    ]
    again = Profile(with_sets.path)
    assert again.static_sets["loss"] == (StaticStep(0, True, 0.0, 1.0),)
    assert len(again.static_sets["norm"]) == 2
    assert again.curve == profile.curve


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([StaticStep(6, False, 0.1, 1.0)], r"pyskip.static.loss: found 13, expected each of 0 to 11"),
        ([StaticStep(1, False, 0.1, 1.0)] * 2, r"found 3 twice"),
        ([StaticStep(1, False, float("nan"), 1.0)], r"pyskip.static.loss.kld_mean: found -?nan"),
        ([StaticStep(1, False, 0.1, -1.0)], r"pyskip.static.loss.ppl_ratio: found -1"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, profile: Profile, steps: list[StaticStep], told: str) -> None:
    add_static(profile.path, tmp_path / "bad.skip.gguf", {"loss": steps})
    refused(tmp_path / "bad.skip.gguf", told)


@pytest.mark.parametrize("sublayer", list(Sublayer))
def test_native_turns_equal_numpy(tiny: Path, tiny_llm: pyskip.Llama, sublayer: Sublayer) -> None:
    """cos(x, x + y) and |y| / |x|, from the streams before and behind."""
    windows = [np.random.default_rng(i).integers(3, 320, 40).astype(np.int32) for i in range(3)]
    found: dict[int, LayerSums] = {}

    def keep(il: int, sums: LayerSums) -> None:
        found[il] = LayerSums(sums.gram, sums.cross.copy(), sums.energy, sums.n_tokens)

    gather(tiny_llm, windows, Kind.STEPS, keep, warmup=4, sublayer=sublayer, progress=lambda *_: None)
    assert sorted(found) == [0, 1, 2, 3, 4]
    expected = {il: np.zeros(2) for il in range(1, 5)}
    with Raw(tiny, taps=("ffn_inp-", "l_out-")) as raw:
        for window in windows:
            raw.clear()
            raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
            for il, sums in expected.items():
                names = ("ffn_inp-{0}", "l_out-{0}") if sublayer is Sublayer.FFN else ("l_out-{1}", "ffn_inp-{0}")
                x, z = (raw.tapped[name.format(il, il - 1)].reshape(40, -1)[4:].astype(np.float64) for name in names)
                sizes = np.linalg.norm(x, axis=1)
                sums += (
                    ((x * z).sum(1) / sizes / np.linalg.norm(z, axis=1)).sum(),
                    (np.linalg.norm(z - x, axis=1) / sizes).sum(),
                )
    for il, sums in expected.items():
        assert found[il].n_tokens == 3 * 36
        np.testing.assert_allclose(found[il].cross[0], sums, rtol=1e-4)


# Which to leave out


class Costs:
    """Made-up divergences of policies: each sublayer's own, and more for each pair of neighbours."""

    def __init__(self, own: dict[Place, float], per_pair: float) -> None:
        self.own, self.per_pair, self.n_asked = own, per_pair, 0

    def of(self, places: frozenset[Place]) -> float:
        pairs = [(a, b) for a, b in itertools.combinations(sorted(places), 2) if abs(a[1] - b[1]) <= 1]
        return sum(self.own[place] for place in places) + self.per_pair * len(pairs)

    def __call__(self, policy: Policy) -> tuple[float, float]:
        assert isinstance(policy, Static)
        self.n_asked += 1
        places = [(Sublayer.FFN, il) for il in policy.layers] + [(Sublayer.ATTENTION, il) for il in policy.attention]
        return self.of(frozenset(places)), 1.0

    def greedy(self, n: int) -> list[float]:
        """The divergences on the way, every place looked at in every step."""
        chosen: frozenset[Place] = frozenset()
        found = []
        for _ in range(n):
            chosen = min((chosen | {place} for place in self.own if place not in chosen), key=self.of)
            found.append(self.of(chosen))
        return found


@pytest.mark.parametrize("per_pair", [0.0, 0.3, 5.0])
def test_sets_are_greedy_and_need_not_look_at_all(per_pair: float) -> None:
    rng = np.random.default_rng(1)
    costs = Costs({(kind, il): float(rng.exponential()) for kind in Sublayer for il in range(20)}, per_pair)
    chosen = list(choose(list(costs.own), 8, costs, lambda *_: None))
    found = [costs.of(frozenset(chosen[:n])) for n in range(1, 9)]
    assert found == pytest.approx(costs.greedy(8))
    assert costs.n_asked < 40 + 7 * 20  # of 40 + 39 + ... + 33


def test_costs_are_those_of_eval(tiny_llm: pyskip.Llama) -> None:
    policies = [pyskip.parse_skip(spec) for spec in ("static:1", "static:attn=5", "static:5,attn=0+2")]
    windows = [np.random.default_rng(i).integers(3, 320, 64).astype(np.int32) for i in range(2)]
    with measuring(tiny_llm, windows) as cost:
        found = [cost(policy) for policy in policies]
    expected = evaluate_windows(tiny_llm, [w.tolist() for w in windows], policies, n_ctx=64)[1:]
    for (kld, ratio), result in zip(found, expected, strict=True):
        assert kld == pytest.approx(result.kld_mean, rel=1e-3)
        assert ratio == pytest.approx(result.ppl_ratio, rel=1e-3)


@pytest.mark.slow
def test_find_static_sets(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """A profile is made first, and named by its sets each line can be used; a second look replaces them."""
    text, model = tmp_path / "t.txt", tmp_path / "m.gguf"
    text.write_text(" ".join(str(i * i) for i in range(6000)))
    shutil.copy(tiny, model)
    flags = ("--text", str(text), "--fit", "6", "--curve", "2", "--harm", "0")
    result = cli("calibrate", str(model), "--static", "3", *flags)
    assert result.returncode == 0, result.stderr
    profile = Profile(tmp_path / "m.skip.gguf")
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith(BY)]
    assert [line[:2] for line in lines] == [[by, str(n)] for by in ("cosine", "norm", "loss") for n in (1, 2, 3)]
    assert "sublayer 3" in result.stderr
    rows = {(line[0], int(line[1])): line for line in lines}
    for by in BY:
        assert [round(step.kld_mean, 4) for step in profile.static_sets[by]] == [
            float(rows[by, n][2]) for n in (1, 2, 3)
        ]
    result = cli("calibrate", str(model), "--static", "2", *flags, "--json", "-o", str(tmp_path / "other.skip.gguf"))
    document = json.loads(result.stdout)
    assert [one["skip"] for one in document["sets"]] == [rows[one["by"], one["n"]][-1] for one in document["sets"]]
    assert len(Profile(document["profile"]).static_sets["loss"]) == 2
    assert len(Profile(tmp_path / "m.skip.gguf").static_sets["loss"]) == 3
    answer = cli("generate", str(model), "-p", "1 4", "-n", "4", "--skip", "static:n=3", "--json")
    skip = json.loads(answer.stdout)["skip"]
    assert sum(skip["per_layer"]) + sum(skip["attention_per_layer"]) == 3
    assert "by loss" in cli("info", str(model)).stdout
    told = json.loads(cli("info", str(model), "--json").stdout)["profile"]["static_sets"]
    assert [set(step) for step in told["norm"]] == [{"il", "is_attention", "kld_mean", "ppl_ratio"}] * 3


def test_more_sublayers_than_there_are(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    shutil.copy(tiny, model)
    make_profile.make_profile(tiny, tmp_path / "m.skip.gguf")
    result = cli("calibrate", str(model), "--static", "12")
    assert result.returncode == 1
    assert "12 sublayers were asked for, expected 1 to 11" in result.stderr.splitlines()[-1]
