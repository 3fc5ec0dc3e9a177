"""Policies whose set the prompt chooses: AdaSkip, and the choice by a profile's gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import make_profile
import numpy as np
import numpy.typing as npt
import pytest
from conftest import open_llm
from raw import Raw, Token
from test_batches import check_same, tiny_tokens
from test_low_memory import evict, pages, resident

import pyskip
from pyskip import AdaSkip, Prompted, parse_skip
from pyskip.models.profile import Profile

N_LAYER, N_EMBD = 6, 64
N_PROMPT, N_LATE = 40, 20
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def profile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("profile") / "tiny.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32")
    return Profile(path)


@contextmanager
def tapped(path: Path, spec: str = "off") -> Iterator[Raw]:
    with Raw(path, spec, exact=True, taps=("inp_embd", "embd", "ffn_inp-", "l_out-")) as raw:
        yield raw


def streams(raw: Raw, rows: int) -> Floats:
    """The residual stream of the batch that was decoded last, [2*N_LAYER + 1, rows, N_EMBD]: before the first sublayer
    and behind each, attention and FFN of layer 0, 1, ..."""
    first = "inp_embd" if "inp_embd" in raw.tapped else "embd"
    names = [first, *(f"{kind}-{il}" for il in range(N_LAYER) for kind in ("ffn_inp", "l_out"))]
    return np.stack([raw.tapped[name].reshape(rows, N_EMBD).astype(np.float64) for name in names])


def similarity(stream: Floats) -> tuple[Floats, Floats]:
    """Of each sublayer and row: cos(x, z), and |z| / |x|."""
    norms = np.linalg.norm(stream, axis=-1)
    return (stream[:-1] * stream[1:]).sum(-1) / (norms[:-1] * norms[1:]), norms[1:] / norms[:-1]


def chosen(raw: Raw) -> list[int]:
    """The sublayers that were skipped for the last traced token."""
    trace = raw.skip.take_trace(4096)
    both = np.stack([trace.attention[-1], trace.skipped[-1]], axis=1).ravel()
    return list(map(int, np.flatnonzero(both)))


@pytest.mark.parametrize("n", [1, 4, 9])
def test_adaskip_skips_what_changes_the_prompt_least(tiny: Path, n: int) -> None:
    """Against the streams of a dense run, and for each skipped sublayer z = scale * x."""
    tokens = tiny_tokens(80, N_PROMPT, 0)
    with tapped(tiny) as dense, tapped(tiny, f"adaskip:n={n}") as raw:
        expected_logits = dense.decode(tokens)
        cosines, scales = similarity(streams(dense, N_PROMPT))
        most = np.argsort(-cosines.mean(axis=1)[:-2])[:n].tolist()  # of all but the last layer

        raw.skip.set_generated_from(0, N_PROMPT)
        logits = raw.decode(tokens)
        np.testing.assert_array_equal(logits, expected_logits)  # the prompt runs dense
        raw.decode([(7, N_PROMPT, 0)])
        stream = streams(raw, 1)[:, 0]
        assert chosen(raw) == sorted(most)
        for p in range(2 * N_LAYER):
            step = stream[p + 1] / stream[p]
            if p in most:
                np.testing.assert_allclose(step, scales[p].mean(), rtol=1e-5)
            else:
                assert step.std() > 1e-3


def test_adaskip_adds_ffns_that_prove_similar(tiny: Path) -> None:
    """After 20 tokens, those whose mean cosine over them reaches the n-th largest of the prompt."""
    n_added = 0
    for seed in range(8):
        prompt, generated = tiny_tokens(90 + seed, 6, 0), [(3 + 11 * seed + i % 2, 6 + i, 0) for i in range(N_LATE + 2)]
        with tapped(tiny, "adaskip:n=3") as raw:
            raw.skip.set_generated_from(0, 6)
            raw.decode(prompt)
            least = np.sort(similarity(streams(raw, 6))[0].mean(axis=1)[:-2])[-3]
            sums = np.zeros(2 * N_LAYER)
            for token in generated[:N_LATE]:
                raw.decode([token])
                sums += similarity(streams(raw, 1))[0][:, 0]
            first = chosen(raw)
            raw.decode(generated[N_LATE:-1])
            late = chosen(raw)
            similar = [p for p in range(1, 2 * N_LAYER - 2, 2) if sums[p] / N_LATE >= least and p not in first]
            assert late == sorted(first + similar)
            n_added += len(similar)
            raw.decode(generated[-1:])
            assert chosen(raw) == late
    assert n_added > 0


@pytest.mark.parametrize("spec", ["adaskip:n=4", "prompt:rate=0.4"])
def test_one_batch_equals_single_steps(tiny: Path, profile: Profile, spec: str) -> None:
    """The batch holds the end of the prompt, and tokens before and after the late choice."""
    tokens, policy = tiny_tokens(81, 100, 0), parse_skip(spec)
    with Raw(tiny, exact=True) as batch, Raw(tiny, exact=True) as steps:
        for raw in (batch, steps):
            raw.skip.set_policy(policy, profile)
            raw.skip.set_generated_from(0, N_PROMPT)
        np.testing.assert_allclose(batch.decode(tokens), steps.step(tokens), atol=1e-4)
        found = batch.skip.stats(policy)
        assert found == steps.skip.stats(policy)
        assert sum(found.skipped) + sum(found.attention_skipped) > 0
        assert sum(found.prompt_skipped) + sum(found.prompt_attention_skipped) == 0
        for evaluated, skipped in (
            (found.evaluated, found.skipped),
            (found.attention_evaluated, found.attention_skipped),
        ):
            assert [e + s for e, s in zip(evaluated, skipped, strict=True)] == [60] * N_LAYER
        check_same(batch, steps)


@pytest.mark.parametrize("spec", ["adaskip:n=4", "prompt:rate=0.4"])
def test_what_is_taken_back_is_decided_again_as_before(tiny: Path, profile: Profile, spec: str) -> None:
    tokens = tiny_tokens(82, 100, 0)
    with Raw(tiny, exact=True) as raw, Raw(tiny, exact=True) as once:
        for each in (raw, once):
            each.skip.set_policy(parse_skip(spec), profile)
            each.skip.set_generated_from(0, N_PROMPT)
        expected = once.decode(tokens)
        decided = once.skip.take_trace(4096)
        raw.decode(tokens[:80])
        raw.decode([(7, pos, 0) for pos in range(80, 90)])  # another end
        for pos in (80, 50, 3):
            llama_cpp.llama_memory_seq_rm(raw.memory, 0, pos, -1)
            raw.skip.take_trace(4096)
            np.testing.assert_allclose(raw.decode(tokens[pos:]), expected[pos:], atol=1e-4)
            trace, n = raw.skip.take_trace(4096), 100 - max(pos, N_PROMPT)
            np.testing.assert_array_equal(trace.skipped, decided.skipped[-n:])
            np.testing.assert_array_equal(trace.attention, decided.attention[-n:])
        llama_cpp.llama_memory_seq_cp(raw.memory, 0, 1, -1, -1)  # a copy goes on as the original
        both = raw.decode([(50 + i, 100 + i, seq) for i in range(10) for seq in (0, 1)])
        np.testing.assert_allclose(both[::2], both[1::2], atol=1e-5)
        llama_cpp.llama_memory_clear(raw.memory, True)
        raw.skip.set_generated_from(0, 0)
        raw.skip.take_trace(4096)
        raw.decode(tokens[:9])
        trace = raw.skip.take_trace(4096)
        assert not trace.skipped.any()  # nothing is known of a prompt
        assert not trace.attention.any()


def expected_choice(path: Path, profile: Profile, tokens: list[Token], n: int) -> list[int]:
    """The layers of the lowest mean score, of all but the last."""
    with Raw(path, exact=True) as raw:
        raw.skip.set_policy(parse_skip("profile:error=0,warmup=0"), profile)  # runs all, and traces what gates say
        raw.skip.set_generated_from(0, 0)
        raw.decode(tokens)
        scores = raw.skip.take_trace(4096).similarity.mean(axis=0)
    return sorted(np.argsort(scores[:-1])[:n].tolist())


def test_the_prompt_chooses_by_gates_and_stand_ins_serve(tiny: Path, profile: Profile) -> None:
    sets = set()
    for seed in range(4):
        tokens = tiny_tokens(100 + seed, 12, 0)
        with Raw(tiny, exact=True) as raw, Raw(tiny, exact=True) as dense:
            raw.skip.set_policy(Prompted(0.34), profile)  # 2 of 6
            raw.skip.set_generated_from(0, 12)
            np.testing.assert_allclose(raw.decode(tokens), dense.decode(tokens), atol=1e-5)
            raw.step([(9 + i, 12 + i, 0) for i in range(30)])
            layers = np.flatnonzero(raw.skip.take_trace(99).skipped[0]).tolist()
            assert layers == expected_choice(tiny, profile, tokens, 2)
            assert [il for il, s in enumerate(raw.skip.stats(Prompted(0.34)).skipped) if s] == layers  # and no others
            sets.add(tuple(layers))
    assert len(sets) > 1  # the prompt has a say
    taps = (f"l_out-{N_LAYER - 2}",)
    with Raw(tiny, exact=True, taps=taps) as all_skip, Raw(tiny, exact=True, taps=taps) as random:
        all_skip.skip.set_policy(Prompted(1.0), profile)
        random.skip.set_policy(parse_skip("random:rate=1,stand_in=1,warmup=0"), profile)
        for raw in (all_skip, random):
            raw.skip.set_generated_from(0, 12)
            raw.decode(tiny_tokens(100, 12, 0))
            raw.decode([(9, 12, 0)])
        np.testing.assert_array_equal(all_skip.tapped[taps[0]], random.tapped[taps[0]])


def layers_of(llm: pyskip.Llama, prompt: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    llm.reset_skip_stats()
    llm.create_completion(prompt, max_tokens=6, temperature=0.0)
    return llm.skip_stats().attention_per_layer, llm.skip_stats().per_layer


def test_a_turn_is_decided_by_its_prompt_alone(tiny: Path) -> None:
    """Whatever was in the cache before: another prompt, the same one decoded dense, a state that was loaded."""
    one, two = "w0 w1 w2 w3 w4", "w24 w25 w26 w27 w28"
    llm = open_llm(tiny, 128, skip="adaskip:n=3")
    first, second = layers_of(llm, one), layers_of(llm, two)
    assert first != second
    assert sum(first[0]) + sum(first[1]) > 0
    assert layers_of(llm, one) == first
    assert layers_of(llm, one) == first  # all of it is in the cache
    llm.skip = "off"
    llm.create_completion(two, max_tokens=1)
    llm.skip = "adaskip:n=3"
    assert layers_of(llm, two) == second

    llm.reset()
    llm.eval(llm.tokenize(one.encode()))
    state = llm.save_state()
    assert layers_of(llm, two) == second
    llm.load_state(state)
    llm.reset_skip_stats()
    llm.mark_generated()
    llm.eval([5, 6, 7])
    assert sum(llm.skip_stats().skipped) + sum(llm.skip_stats().attention_skipped) == 0  # not by the other prompt
    assert llm.skip_stats().n_tokens == 3
    llm.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_in_low_memory_what_the_prompt_chose_is_never_read(tiny: Path, profile: Profile) -> None:
    """From the first generated token on: its own decode is another graph than the prompt's."""
    llm = pyskip.Llama(
        tiny, skip="prompt:rate=0.5", profile=profile.path, low_memory=True, n_ctx=64, n_threads=2, verbose=False
    )
    llm.mark_generated(8)
    llm.eval(range(5, 13))
    evict(tiny)
    llm.eval([6])
    seen, skipped = resident(tiny), llm.skip_stats().skipped
    assert sum(skipped) == 3
    for il in range(N_LAYER):
        for part in ("gate", "up", "down"):
            of_tensor = seen[pages(tiny, f"blk.{il}.ffn_{part}.weight")]
            assert of_tensor.any() != bool(skipped[il]), (il, part)
            assert of_tensor.all() == of_tensor.any()
    llm.close()


def test_a_generation_reads_no_skipped_block_from_its_first_token_on(tiny: Path, profile: Profile) -> None:
    """Of a prompt that chose, until the next prompt, which chooses anew and runs dense."""
    llm = pyskip.Llama(
        tiny, skip="prompt:rate=0.5", profile=profile.path, low_memory=True, n_ctx=128, n_threads=1, verbose=False
    )

    parts = ("gate", "up", "down")
    places = [[pages(tiny, f"blk.{il}.ffn_{part}.weight") for part in parts] for il in range(N_LAYER)]  # it reads ahead

    def whole() -> list[set[bool]]:
        """By layer: which pages of its FFN are in memory, all, none or both."""
        seen = resident(tiny)
        return [{bool(page) for place in of_layer for page in seen[place]} for of_layer in places]

    for prompt in (range(5, 25), range(40, 20, -1)):
        llm.reset_skip_stats()
        generator = llm.generate(list(prompt), temp=0.0)
        next(generator)  # the prompt is computed
        assert whole() == [{True}] * N_LAYER
        evict(tiny)
        for n in range(1, 8):
            next(generator)
            skipped = llm.skip_stats().skipped
            assert sum(map(bool, skipped)) == 3
            assert set(skipped) == {0, n}
            assert whole() == [{not count} for count in skipped], n
        generator.close()
    llm.close()


def test_what_a_model_has_no_sublayers_for_is_refused(tiny: Path) -> None:
    with Raw(tiny) as raw:
        raw.skip.set_policy(AdaSkip(9))
        with pytest.raises(pyskip.PolicyError, match="expected 1 to 9"):
            raw.skip.set_policy(AdaSkip(10))
