"""A pace that is kept: the controller on simulated machines, and on a real one that a hog shares for a while."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pyskip
from pyskip.runtime.pace import Pace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass
class Machine:
    """Decodes `dense` tokens/s; skipping everything would save `saves` of a token's time. Its own clock."""

    dense: float = 60.0
    saves: float = 0.5
    noise: float = 0.0  # standard deviation of a token's time, relative
    seconds: float = 0.0
    log: list[tuple[float, float]] = field(default_factory=list)  # seconds at its end, skip rate
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def clock(self) -> float:
        return self.seconds

    def decode(self, pace: Pace, until: float, slow: float = 1.0) -> None:
        while self.seconds < until:
            pace.begin()
            rate = pace.rate
            scatter = max(0.1, 1 + self.noise * self.dice.gauss(0, 1))
            self.seconds += slow / self.dense * (1 - self.saves * rate) * scatter
            pace.end()
            self.log.append((self.seconds, rate))

    def tps(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at, _ in self.log) / (end - begin)

    def rates(self, begin: float, end: float) -> list[float]:
        return [rate for at, rate in self.log if begin <= at < end]


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("dense", "saves", "slow"), [(60, 0.5, 1.2), (60, 0.8, 1.3), (60, 0.25, 1.15), (5, 0.5, 1.2)])
def test_throttled_and_free_again(dense: float, saves: float, slow: float, noise: float) -> None:
    machine = Machine(dense, saves, noise)
    pace = Pace(0.93 * dense, 0.45, clock=machine.clock)
    machine.decode(pace, 10)
    assert statistics.mean(machine.rates(0, 10)) < 0.05
    machine.decode(pace, 30, slow)
    assert machine.tps(13, 30) == pytest.approx(pace.target_tps, rel=0.1)
    assert statistics.mean(machine.rates(13, 30)) > 0.05
    machine.decode(pace, 50)
    assert statistics.median(machine.rates(35, 50)) == 0


def test_settles_without_swinging() -> None:
    machine = Machine()
    pace = Pace(66, 0.45, clock=machine.clock)
    machine.decode(pace, 20)
    assert set(machine.rates(5, 20)) == {pace.rate}
    assert machine.tps(5, 20) == pytest.approx(66, rel=0.04)


def test_noise_moves_it_little() -> None:
    machine = Machine(noise=0.2)
    pace = Pace(66, 0.45, clock=machine.clock)
    machine.decode(pace, 60)
    rates = machine.rates(5, 60)
    moves = [b - a for a, b in itertools.pairwise(rates) if a != b]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(moves))
    assert statistics.pstdev(rates) < 0.07
    assert turns < 30  # of 220 looks at the rate
    assert machine.tps(5, 60) == pytest.approx(66, rel=0.05)


def test_one_stall_moves_nothing() -> None:
    machine = Machine()
    pace = Pace(60, 0.45, clock=machine.clock)
    machine.decode(pace, 10)
    machine.decode(pace, 10.01, slow=30)  # one token of half a second
    machine.decode(pace, 20)
    assert set(machine.rates(0, 20)) == {0.0}


def test_an_unreachable_target_stops_at_max_skip() -> None:
    machine = Machine()
    pace = Pace(600, 0.3, floor=0.1, clock=machine.clock)
    machine.decode(pace, 10)
    assert max(machine.rates(0, 10)) == 0.3
    assert pace.rate == 0.3
    stats = pace.stats()
    assert stats.is_short
    assert stats.held == 0
    assert "not enough" in str(stats)
    machine.dense = 6000  # what was wound up must not hold it there
    machine.decode(pace, 15)
    assert pace.rate == 0.1
    assert not pace.stats().is_short


def test_never_below_its_floor_nor_beyond_max_skip() -> None:
    machine = Machine(noise=0.5)
    pace = Pace(62, 0.4, floor=0.05, clock=machine.clock)
    for start in range(0, 60, 10):
        machine.decode(pace, start + 5, slow=2.0)
        machine.decode(pace, start + 10, slow=0.5)
    rates = machine.rates(0, 60)
    assert min(rates) == 0.05
    assert max(rates) == 0.4


def test_only_what_was_decoded_counts() -> None:
    """Prompts, warm-up and a reader who takes his time are not slow decoding."""
    machine = Machine()
    pace = Pace(55, 0.45, clock=machine.clock)
    for _ in range(200):
        machine.decode(pace, machine.seconds + 1e-9)  # one token
        machine.seconds += 1.0
    assert pace.rate == 0
    stats = pace.stats()
    assert stats.held == 1
    assert stats.tps == pytest.approx(60)
    assert stats.seconds == pytest.approx(200 / 60, abs=0.3)
    pace.reset_stats()
    assert "nothing measured" in str(pace.stats())


@pytest.mark.parametrize(
    ("target", "max_skip", "floor"),
    [
        (0, 0.3, 0),
        (-1, 0.3, 0),
        (float("nan"), 0.3, 0),
        (float("inf"), 0.3, 0),
        (20, 0, 0),
        (20, 1.1, 0),
        (20, 0.2, 0.2),
    ],
)
def test_refused(target: float, max_skip: float, floor: float) -> None:
    with pytest.raises(pyskip.PolicyError, match="expected"):
        Pace(target, max_skip, floor=floor)


# In pyskip.Llama


def test_a_target_beyond_reach_skips_what_it_may(llm: pyskip.Llama) -> None:
    profile = llm.profile
    assert profile is not None
    llm.keep_pace(1e6)
    assert llm.pace is not None
    assert llm.pace.rate == 0
    tokens = llm.tokenize(b"One, two, three, four, five, six, seven, eight, nine, ten, eleven,")
    for _ in zip(range(400), llm.generate(tokens, temp=0), strict=False):
        if llm.pace.rate == llm.pace.max_skip and llm.skip_stats().rate > 0:
            break
    assert llm.pace.rate == llm.pace.max_skip
    assert 0 <= profile.recommended.rate - llm.pace.max_skip < 1e-3
    assert llm.skip == pyskip.Profiled(rate=llm.pace.rate, hold=False)
    assert llm.skip_stats().rate > 0
    llm.skip = "off"
    assert llm.pace is None


def test_a_target_far_below_is_dense(llm: pyskip.Llama) -> None:
    tokens = llm.tokenize(b"One, two, three, four, five, six, seven, eight, nine, ten, eleven,")
    dense = [token for token, _ in zip(llm.generate(tokens, temp=0), range(300), strict=False)]
    llm.reset()  # else the prompt is used again but for its last token, which another kernel then computes
    llm.engine.clear()
    llm.keep_pace(0.01)
    paced = [token for token, _ in zip(llm.generate(tokens, temp=0), range(300), strict=False)]
    assert paced == dense
    assert llm.skip_stats().rate == 0
    assert llm.pace is not None
    assert llm.pace.stats().held == 1


def test_the_warm_up_is_not_measured(llm: pyskip.Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def begin(pace: Pace) -> None:
        measured.append(pace.rate)

    monkeypatch.setattr(Pace, "begin", begin)
    llm.keep_pace(20)
    assert llm.pace is not None
    assert llm.profile is not None
    tokens = llm.tokenize(b"One, two, three,")
    for n, _ in enumerate(llm.generate(tokens, temp=0)):
        assert len(measured) == max(0, n - llm.profile.warmup)
        if n > llm.profile.warmup + 3:
            break


def test_a_floor_and_what_has_none(llm: pyskip.Llama, tiny: Path) -> None:
    llm.skip = "profile:rate=0.1,warmup=0"
    llm.keep_pace(1000, 0.4)
    assert llm.pace is not None
    assert llm.pace.floor == 0.1
    assert llm.pace.max_skip == pytest.approx(0.4)
    llm.keep_pace(20)  # another pace from the same floor
    assert llm.pace.floor == 0.1
    assert str(llm.skip) == "profile:rate=0.1,hold=0,warmup=0"
    copy = pickle.loads(pickle.dumps(llm))
    assert (copy.pace.target_tps, copy.pace.floor, copy.skip) == (20, 0.1, llm.skip)
    copy.close()
    with pytest.raises(pyskip.PolicyError, match="beyond the profile's curve"):
        llm.keep_pace(20, 0.99)
    for bad in (-1, float("nan"), "0.3"):
        with pytest.raises(pyskip.PolicyError, match="expected a number from 0 to 1"):
            llm.keep_pace(20, bad)  # type: ignore[arg-type]
    with pytest.raises(pyskip.PolicyError, match="target_tps is 'fast'"):
        llm.keep_pace("fast")  # type: ignore[arg-type]
    llm.keep_pace(None)
    assert llm.pace is None
    for skip in ("static:5", "cosine", "profile", "profile:error=0.1"):
        llm.skip = skip
        with pytest.raises(pyskip.PolicyError, match="expected off or a rate"):
            llm.keep_pace(20)
    with pytest.raises(pyskip.PolicyError, match="no target_tps"):
        llm.keep_pace(None, 0.3)
    with pytest.raises(pyskip.ProfileError, match="target_tps needs a profile"):
        pyskip.Llama(tiny, target_tps=20, verbose=False)


@pytest.fixture
def hog() -> Iterator[Callable[[], list[subprocess.Popen[bytes]]]]:
    """Starts processes that spin, two for each core; ends what is left of them."""
    from pyskip.system import physical_cores

    hogs: list[subprocess.Popen[bytes]] = []

    def start() -> list[subprocess.Popen[bytes]]:
        hogs.extend(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * physical_cores()))
        return hogs

    yield start
    for process in hogs:
        process.kill()
        process.wait()


def test_a_hog_comes_and_goes(demo: Path, hog: Callable[[], list[subprocess.Popen[bytes]]]) -> None:
    """The target is less than what the machine decodes alone, and more than what the hogs leave of it. One thread: two
    that wait for each other would stand still beside hogs."""
    llm = pyskip.Llama(demo, skip="profile:rate=0,warmup=0", n_ctx=512, n_threads=1, verbose=False)
    tokens = llm.tokenize(b"One, two, three, four, five, six, seven, eight, nine, ten, eleven,")

    def decode(until: Callable[[float], bool], most: int = 600) -> bool:
        """Whether the operating point comes to where it should."""
        n_tokens = 0
        while n_tokens < most:
            for _ in zip(range(100), llm.generate(tokens, temp=0), strict=False):
                n_tokens += 1
                if llm.pace is not None and until(llm.pace.rate):
                    return True
        return False

    llm.keep_pace(1e-3)
    decode(lambda _: False, most=100)
    assert llm.pace is not None
    llm.keep_pace(0.6 * llm.pace.stats().tps, 0.4)
    assert not decode(lambda rate: rate > 0.3, most=100)
    hogs = hog()
    assert decode(lambda rate: rate > 0.3)
    for process in hogs:
        process.kill()
        process.wait()
    assert decode(lambda rate: rate == 0)
    llm.close()


# On the command line


@pytest.mark.model
def test_generate_keeps_a_pace(cli: Run) -> None:
    args = ("generate", "demo", "-p", "One, two, three, four,", "-n", "500", "--target-tps", "100000", "--json")
    document = json.loads(cli(*args, "--max-skip", "0.4").stdout)
    assert document["pace"]["target_tps"] == 100000
    assert document["pace"]["max_skip"] == pytest.approx(0.4)
    assert document["pace"]["is_short"]
    assert document["pace"]["rate"] > 0
    assert json.loads(cli(*args[:6], "--skip", "off", "--json").stdout)["pace"] is None


@pytest.mark.model
def test_chat_says_how_the_pace_went(cli: Run) -> None:
    done = cli("chat", "-n", "300", "--temp", "0", "--target-tps", "0.5", input="Tell me about the sea.\n")
    assert done.returncode == 0
    assert "skipping what it takes to keep 0.5 tokens/s, at most 0.23 of FFN blocks" in done.stderr
    assert re.search(r"pace 0\.5 tokens/s: held 100% of the time", done.stderr)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--target-tps", "0"), 2, "--target-tps"),
        (("--target-tps", "nan"), 2, "--target-tps"),
        (("--target-tps", "20", "--max-skip", "1.5"), 2, "--max-skip"),
        (("--max-skip", "0.2"), 1, "no target_tps"),
        (("--target-tps", "20", "--skip", "static:5"), 1, "expected off or a rate"),
        (("--target-tps", "20", "--skip", "0.3"), 1, "max_skip is 0.23"),
    ],
)
@pytest.mark.model
def test_mistakes_are_one_line(cli: Run, flags: tuple[str, ...], status: int, words: str) -> None:
    done = cli("generate", "demo", "-p", "x", "-n", "1", *flags)
    assert done.returncode == status
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
