"""Distillation: without its extra one line, and with it the pieces that can be checked without much training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from families import FAMILIES, make_family

import pyskip
from pyskip.calibration.calibrate import Settings, calibrate, write_tokens
from pyskip.calibration.distill.state import load_state, save_state, to_float
from pyskip.calibration.distill.text import Draws, Starts, Text, load_text
from pyskip.calibration.distilled import layers_of
from pyskip.calibration.write import Quantised, write_profile
from pyskip.models.profile import Profile

WARMUP = 16


def numbers(n: int) -> str:
    return " ".join(str(i * i) for i in range(n))


def test_without_the_extra_one_line(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "pyskip.calibration.distill.train", raising=False)
    text = tmp_path / "t.txt"
    text.write_text(numbers(1000))
    settings = Settings(text=(text,), distill=1.0, output=tmp_path / "p.skip.gguf")
    with pytest.raises(pyskip.PyskipError, match=r"torch is not installed.*pip install 'pyskip\[distill\]'"):
        calibrate(tiny, settings, lambda *_: None)
    assert not (tmp_path / "p.skip.gguf").exists()


def test_tokens_for_another_machine(tiny: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text(numbers(2000))
    paths[1].write_text("abc " * 1000)
    settings = Settings(text=tuple(paths), distill=1.0, output=tmp_path / "p.skip.gguf")
    n_tokens = write_tokens(tiny, settings, tmp_path / "t.npz")
    text = load_text(tmp_path / "t.npz")
    assert text.n_tokens == n_tokens > 2000
    assert [name.split(" ")[1] for name in text.kinds] == ["a.txt", "b.txt"]
    assert len(set(text.starts.prompts)) > 800
    assert 2 in text.starts.ends
    write_tokens(tiny, replace(settings, n_fit=4), tmp_path / "own.npz")
    both = load_text(tmp_path / "own.npz")
    assert list(both.kinds) == [*text.kinds, "own"]
    assert len(both.kinds["own"]) == 4  # of the model's own, beside what is given
    assert "and sampled from the model" in both.source
    (tmp_path / "t.npz").write_bytes(b"no tokens")
    with pytest.raises(pyskip.PyskipError, match=r"no file of tokens"):
        load_text(tmp_path / "t.npz")


def test_draws_are_even_among_kinds_and_leave_out_what_is_held() -> None:
    kinds = {"long": [np.arange(100_000, dtype=np.int32)], "short": [np.arange(10**6, 10**6 + 90, dtype=np.int32)] * 40}
    draws = Draws(Text(kinds), 64, 1)
    held = {int(w[0]) for w in draws.held_out}
    assert any(first < 100_000 for first in held)
    drawn = draws.draw(200)
    assert (drawn >= 10**6).all(1).sum() == 100
    assert (np.diff(drawn, axis=1) == 1).all()
    last = max(first for first in held if first < 100_000) + 64
    assert drawn[drawn < 10**6].min() >= last
    with pytest.raises(pyskip.PyskipError, match=r"expected two windows of 64: give more text"):
        Draws(Text({"none": [np.arange(60, dtype=np.int32)]}), 64, 1)


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """In float32, whatever this processor multiplies faster."""
    pytest.importorskip("transformers", reason="needs pyskip[distill]")
    pytest.importorskip("accelerate", reason="needs pyskip[distill]")
    module = pytest.importorskip("torch", reason="needs pyskip[distill]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyskip.calibration.distill.dense.is_bf16_faster", lambda: False)
        yield module


def test_training_sees_the_quantisation_that_is_written(torch: Any) -> None:
    from pyskip.calibration.distill.stand_ins import fake_q4_0, pack_q4_0

    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    seen = fake_q4_0(w)
    kind = gguf.GGMLQuantizationType.Q4_0
    packed = gguf.quantize(w.detach().numpy(), kind)
    np.testing.assert_allclose(seen.detach().numpy(), gguf.dequantize(packed, kind), atol=1e-6)
    np.testing.assert_array_equal(pack_q4_0(w).numpy(), packed)
    np.testing.assert_allclose(to_float(pack_q4_0(w).numpy()), seen.detach().numpy(), atol=1e-6)
    seen.sum().backward()
    assert (w.grad == 1).all()


def test_the_mean_of_exponential_draws_is_found_again(torch: Any) -> None:
    from pyskip.calibration.distill.gates import fit_log_mean

    rng = np.random.default_rng(2)
    f = np.concatenate([rng.standard_normal((20000, 6)), np.ones((20000, 1))], 1)
    true = np.array([0.5, -0.3, 0.8, 0.0, 0.2, -0.6, -3.0])
    h = np.exp(f @ true) * rng.standard_normal(20000) ** 2  # as one drawn label's squared slope
    given = torch.tensor(f).float(), torch.tensor(h).float(), torch.zeros(7)
    drawn_back, w = fit_log_mean(*given).numpy(), fit_log_mean(*given, 1e-3).numpy()
    np.testing.assert_allclose(w, true, atol=0.06)
    assert np.linalg.norm(drawn_back[:-1]) < 0.8 * np.linalg.norm(w[:-1])


def test_the_gradient_in_pieces_is_that_of_the_whole(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from pyskip.calibration.distill import loss

    rng = torch.Generator().manual_seed(3)
    out = torch.randn(700, 32, generator=rng)
    dense: Any = SimpleNamespace(
        config=SimpleNamespace(vocab_size=700),
        device=torch.device("cpu"),
        head=lambda h: 5 * torch.tanh(h @ out.T / 5),
    )
    target, student = (torch.randn(200, 32, generator=rng) for _ in range(2))
    weight = torch.rand(200, generator=rng)
    monkeypatch.setitem(loss.PIECE, "cpu", 700 * 64)
    values, gradient = loss.divergence_gradient(dense, target, student, weight)
    student.requires_grad_(True)
    p, q = dense.head(target).log_softmax(-1), dense.head(student).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    (kl * weight).sum().backward()
    np.testing.assert_allclose(values.numpy(), kl.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), student.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_held_thresholds_hold(torch: Any) -> None:
    """Whatever the scores' level in a sequence, and though it drifts."""
    from pyskip.calibration.distill.hold import hold_thresholds

    rng = torch.Generator().manual_seed(4)
    scores = torch.randn(6, 512, 20, generator=rng) + torch.randn(6, 1, 1, generator=rng) * 3
    scores += torch.linspace(0, 2, 512)[None, :, None]
    rates = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    found = hold_thresholds(scores, rates, torch.zeros(6), WARMUP)
    skipped = (scores < found[..., None]).float()
    assert skipped[:, :WARMUP].sum() == 0
    for begin in (64, 128, 256):
        np.testing.assert_allclose(skipped[:, begin : begin + 256].mean((1, 2)).numpy(), rates.numpy(), atol=0.02)


Trainers = Callable[[str], Any]


@pytest.fixture(scope="module")
def trainers(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Trainers:
    """Of a family's tiny model, after the first two stages, each with its path."""
    from pyskip.calibration.distill.dense import Dense
    from pyskip.calibration.distill.train import Plan, Trainer

    folder = tmp_path_factory.mktemp("families")
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            dense = Dense(make_family(folder / f"{name}.gguf", name), "cpu")
            dense.to_device()
            text = Text({"any": [np.random.default_rng(5).integers(260, 320, 8000).astype(np.int32)]})
            plan = Plan(600.0, width=32, n_window=128, n_local=8, n_local_steps=40, n_gates=4, batch=2)
            trainer = Trainer(dense, Draws(text, 128, 1), plan, lambda *_: None)
            trainer.fit_local()
            trainer.fit_gates(skipping=False)
            made[name] = trainer
        return made[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_profile_computes_what_was_trained(
    torch: Any, trainers: Trainers, family: str, tmp_path: Path
) -> None:
    """The torch model and the native one, both in f32, with the same stand-ins, on the same window."""
    from raw import Raw
    from test_profile_files import CURVE, PROVENANCE

    trainer = trainers(family)
    window = trainer.draws.draw(1)
    threshold = trainer.thresholds[0.25]
    with torch.no_grad():
        plain = trainer.dense.head(trainer.dense.stream(torch.from_numpy(window)))[0].numpy()
        below = torch.full(window.shape, threshold)
        below[:, :WARMUP] = -torch.inf
        stream, skipped = trainer.skipping_pass(torch.from_numpy(window), below)
        logits = trainer.dense.head(stream)[0].numpy()

    state = trainer.state("", Text({}))
    provenance = replace(
        PROVENANCE, stand_in="gated", warmup=WARMUP, activation=state.activation, hidden_norm=state.hidden_norm
    )
    path = tmp_path / "p.skip.gguf"
    layers = [
        replace(layer, matrices={"skip_gate_up": gate_up.numpy(), "skip_down": down.numpy()})
        for layer, gate_up, down in zip(
            layers_of(state, "F32"), trainer.own.gate_up.detach(), trainer.own.down.detach(), strict=True
        )
        if layer is not None
    ]
    write_profile(path, layers, [replace(CURVE[0], threshold=threshold)], 0, provenance, "F32")
    tokens = [(int(t), i, 0) for i, t in enumerate(window[0])]
    with Raw(trainer.dense.path, exact=True) as raw:
        dense = raw.decode(tokens)
        assert np.sqrt(((dense - plain) ** 2).mean()) < 0.01 * plain.std()
    with Raw(trainer.dense.path, exact=True) as raw:
        raw.skip.set_policy(pyskip.Profiled(hold=False), Profile(path))
        raw.skip.set_generated_from(0, 0)
        native = raw.decode(tokens)
        decided = raw.skip.take_trace(window.shape[1]).skipped[WARMUP:]
    assert 0.05 < decided.mean() < 0.6
    assert (decided == skipped[0, WARMUP:].numpy()).mean() > 0.99
    difference = native[WARMUP:] - logits[WARMUP:]
    assert np.sqrt((difference**2).mean()) < 0.02 * logits.std()
    assert np.abs(logits - plain).mean() > 5 * np.abs(difference).mean()  # what skipping changes is far more


def test_joint_training_lowers_the_divergence(torch: Any, trainers: Trainers) -> None:
    """And a state goes on from where it was."""
    from pyskip.calibration.distill.adam import Adam
    from pyskip.calibration.distill.dense import Dense
    from pyskip.calibration.distill.train import Trainer

    trainer = trainers("llama")
    trainer.find_shifts()
    before = trainer.measure()
    adam = Adam(trainer.own, 1e-3)
    for _ in range(80):
        trainer._learn(adam)
    trainer.own.is_quantised = True
    after = trainer.measure()
    assert after < before - 0.2
    dense = Dense(trainer.dense.path, "cpu")
    dense.to_device()
    other = Trainer(dense, trainer.draws, trainer.plan, lambda *_: None)
    other.resume(trainer.state("", Text({})))
    other.own.is_quantised = True
    assert abs(other.measure() - after) < 0.05


def test_bf16_is_nearly_the_same(torch: Any, trainers: Trainers) -> None:
    from pyskip.calibration.distill.dense import Dense

    wide = trainers("llama").dense
    narrow = Dense(wide.path, "cpu")
    narrow.is_narrow = True
    narrow.to_device()
    window = torch.from_numpy(trainers("llama").draws.draw(1))
    with torch.no_grad():
        a, b = (dense.head(dense.stream(window)) for dense in (wide, narrow))
    assert 0 < float((a - b).norm()) < 0.05 * float(a.norm())


def test_gates_see_harm_while_others_are_skipped(torch: Any, trainers: Trainers) -> None:
    """The harm of a block is about what skipping it alone adds to the divergence."""
    trainer = trainers("qwen2")
    gate = trainer.own.gate.detach().clone()
    trainer.fit_gates(skipping=True)
    assert torch.isfinite(trainer.own.gate).all()
    assert not torch.equal(gate, trainer.own.gate)
    window = torch.from_numpy(trainer.draws.draw(2))
    with torch.no_grad():
        _, scores = trainer.dense_pass(window)
        _, skipped = trainer.skipping_pass(window, trainer.held(scores, [0.2, 0.2]))
    assert abs(float(skipped[:, WARMUP:].float().mean()) - 0.2) < 0.06


def test_steps_are_in_proportion_to_the_weights(torch: Any) -> None:
    """Whatever the size of a model's weights: of one size for all they would forget a model whose weights are small."""
    from pyskip.calibration.distill.adam import Adam
    from pyskip.calibration.distill.stand_ins import StandIns

    own = StandIns(2, 64, 32, "silu", is_normed=False)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[0.2, 0.01], [0.02, 3.0]])  # of gate and up, by layer
    before = torch.randn(2, 64, 64, generator=generator) * sizes.repeat_interleave(32, dim=1)[..., None]
    own.gate_up.data = before.clone()
    adam = Adam(own, 1e-3)
    for _ in range(5):
        adam.zero_grad()
        (own.gate_up * torch.randn(before.shape, generator=generator)).sum().backward()
        adam.step()
    changed = (own.gate_up.detach() - before).reshape(2, 2, 32 * 64).pow(2).mean(-1).sqrt() / sizes
    assert float(changed.max() / changed.min()) < 1.1
    assert 0 < float(changed.mean()) < 0.05
    assert not own.down.detach().any()  # what had no gradient stays


def test_recomputing_changes_nothing(torch: Any, trainers: Trainers) -> None:
    from pyskip.calibration.distill.adam import Adam

    trainer = trainers("gemma3")
    gradients = []
    for recompute in (False, True):
        trainer.plan = replace(trainer.plan, recompute=recompute)
        trainer.rng.manual_seed(7)
        trainer.draws._rng, trainer.draws._turn = np.random.default_rng(7), 0
        trainer._learn(Adam(trainer.own, 0.0))
        gradients.append(trainer.own.gate_up.grad.clone())
    assert gradients[0].abs().max() > 0
    np.testing.assert_allclose(gradients[0].numpy(), gradients[1].numpy(), atol=1e-6)


def test_own_text_by_steps_is_likely_text(torch: Any, trainers: Trainers) -> None:
    """Decoding with the keys that are kept says what one pass over the whole says: its labels are as likely."""
    from pyskip.calibration.distill.dense import Dense
    from pyskip.calibration.distill.sample import sample

    dense = Dense(trainers("qwen3").dense.path, "cpu")
    starts = Starts((2,), ((5, 6, 7), (8, 9)), (300,))
    made = sample(dense, starts, 64, 40 * 64, 1e9, 1, lambda *_: None)
    assert {name: len(kind) for name, kind in made.items()} == {"own": 10, "own answers": 30}
    assert {int(t[0]) for t in made["own"]} == {2}
    assert {tuple(t[:2]) for t in made["own answers"]} == {(5, 6), (8, 9)}
    window = np.stack(made["own"]).astype(np.int64)
    dense.to_device()
    with torch.no_grad():
        logp = dense.head(dense.stream(torch.from_numpy(window))).log_softmax(-1)[:, :-1]
    found = float(logp.gather(2, torch.from_numpy(window[:, 1:, None])).mean())
    expected = float((logp.exp() * logp).sum(-1).mean())
    assert abs(found - expected) < 0.3 * abs(expected)
    assert sample(dense, starts, 64, 40 * 64, 0.0, 1, lambda *_: None) == {}


def test_from_text_to_profile_and_from_a_state_alone(
    torch: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "t.txt"
    text.write_text(numbers(3000))
    target = tmp_path / "p.skip.gguf"
    settings = Settings(text=(text,), distill=4.0, width=32, output=target)
    made = calibrate(tiny, settings, lambda *_: None)
    assert made.profile == target
    assert made.curve[0].rate > 0
    state = load_state(tmp_path / "p.distill.npz", tiny)
    assert state.share == 1
    assert state.gate_up.dtype == np.uint8
    assert all(isinstance(m, Quantised) for layer in layers_of(state, "Q4_0") if layer for m in layer.matrices.values())

    # a finished state needs no torch: it may have been trained elsewhere
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "pyskip.calibration.distill.train", raising=False)
    again = calibrate(
        tiny, replace(settings, output=tmp_path / "q.skip.gguf", state=tmp_path / "p.distill.npz"), lambda *_: None
    )
    assert [p.threshold for p in again.curve] == [p.threshold for p in made.curve]

    save_state(tmp_path / "p.distill.npz", replace(state, model="of another"))
    with pytest.raises(pyskip.PyskipError, match=r"the state of another model.*name another --state"):
        calibrate(tiny, settings, lambda *_: None)


def test_a_model_of_another_family_is_refused(torch: Any, tiny: Path, tmp_path: Path) -> None:
    from pyskip.calibration.distill.dense import Dense

    other = tmp_path / "m.gguf"
    other.write_bytes(b"GGUF of nothing")
    with pytest.raises(pyskip.PyskipError, match=r"--distill cannot load this model .*leave --distill away"):
        Dense(other, "cpu")
