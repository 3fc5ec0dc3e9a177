"""What goes wrong around a session that is itself right: threads, forks, files that change, disks that are full.

The long ones, hundreds of interrupts and thousands of requests, are in tests/faults (make faults).
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import pyskip  # isort: skip  (before llama_cpp)
import llama_cpp
from conftest import TEST_PATH, make_profile, make_random
from raw import Raw

from pyskip.runtime.batch import BatchContext

Cli = Callable[..., subprocess.CompletedProcess[str]]

POLICIES = ("off", "cosine:threshold=-1,cold_start=1,cold_end=1,warmup=0", "static:2", "profile:rate=0.5,warmup=0")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, each with a profile beside it."""
    folder = tmp_path_factory.mktemp("pair")
    models = [folder / f"{seed}.gguf" for seed in (1, 2)]
    for seed, path in enumerate(models, 1):
        make_random.make(path, make_random.SHAPES["tiny"], seed=seed)
        make_profile.make_profile(path, path.with_name(f"{seed}.skip.gguf"), seed=seed)
    return models


def load(path: Path, skip: str, n_threads: int = 1) -> pyskip.Llama:
    return pyskip.Llama(path, skip=skip, n_ctx=256, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)


def say(llm: pyskip.Llama, n: int = 60) -> tuple[str, tuple[int, ...]]:
    llm.reset()
    llm.reset_skip_stats()
    done = llm.create_completion("w1 w2 w3", max_tokens=n, temperature=0)
    return done["choices"][0]["text"], llm.skip_stats().skipped


def in_threads(work: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def body(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=body, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_models_and_four_policies_in_threads(pair: list[Path]) -> None:
    """Each says, and skips, what it does alone."""
    llms = [load(path, skip) for path, skip in zip(pair * 2, POLICIES, strict=True)]
    alone = [say(llm) for llm in llms]
    assert len(set(alone)) == 4
    together: dict[int, list[tuple[str, tuple[int, ...]]]] = {i: [] for i in range(4)}

    def say_five_times(i: int) -> None:
        together[i].extend(say(llms[i]) for _ in range(5))

    in_threads([partial(say_five_times, i) for i in range(4)])
    for i, llm in enumerate(llms):
        assert together[i] == [alone[i]] * 5
        llm.close()


@pytest.mark.slow
def test_contexts_come_and_go_while_another_decodes(pair: list[Path]) -> None:
    with closing(load(pair[0], POLICIES[3])) as llm:
        alone = say(llm, 200)
        over = threading.Event()
        n_freed = 0

        def come_and_go() -> None:
            nonlocal n_freed
            while not over.is_set():
                with closing(load(pair[n_freed % 2], POLICIES[n_freed % 4])) as other:
                    other.eval([1, 270])
                n_freed += 1

        def decode() -> None:
            try:
                for _ in range(5):
                    assert say(llm, 200) == alone
            finally:
                over.set()

        in_threads([come_and_go, decode])
        assert n_freed > 0


def test_sequences_come_and_go_while_others_generate(pair: list[Path]) -> None:
    """One is copied, one removed, one cut back; each goes on as it does alone, decisions and logits."""
    spec = "cosine:threshold=0.75,run=2,cold_start=1,cold_end=1,warmup=3"
    prompt = [[(270 + (7 * seq + 3 * pos) % 50, pos, seq) for pos in range(14)] for seq in (0, 1)]
    more = [[(262 + (5 * seq + pos) % 50, pos, seq) for pos in range(14, 24)] for seq in (0, 1, 2)]
    again = [(300 + pos % 9, pos, 2) for pos in range(18, 24)]  # of 2, after it was cut back to 18
    with Raw(pair[0], spec, exact=True) as together, Raw(pair[0], spec, exact=True) as alone:
        for raw in (together, alone):
            for seq in (0, 1):
                raw.skip.set_generated_from(seq, 8)
        together.decode([token for both in zip(*prompt, strict=True) for token in both])
        llama_cpp.llama_memory_seq_cp(together.memory, 0, 2, -1, -1)
        steps = [together.decode(step) for step in zip(more[0][:4], more[1][:4], more[2][:4], strict=True)]
        llama_cpp.llama_memory_seq_rm(together.memory, 1, -1, -1)
        steps += [together.decode(step) for step in zip(more[0][4:], more[2][4:], strict=True)]
        llama_cpp.llama_memory_seq_rm(together.memory, 2, 18, -1)
        last = together.step(again)
        trace = together.skip.take_trace(999)
        for seq, tokens in ((0, prompt[0] + more[0]), (2, prompt[0] + more[2][:4] + again)):
            llama_cpp.llama_memory_clear(alone.memory, True)
            alone.skip.set_generated_from(0, 8)
            expected = alone.step([(token, pos, 0) for token, pos, _ in tokens])[14:]
            own = alone.skip.take_trace(999).skipped
            found = last if seq == 2 else np.stack([step[0] for step in steps])
            np.testing.assert_allclose(found, expected[-len(found) :], atol=1e-4)
            assert own.any()
            assert not own.all(axis=1).any()
            np.testing.assert_array_equal(trace.skipped[trace.seq_ids == seq][-len(found) :], own[-len(found) :])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_fork_after_load(pair: list[Path], n_threads: int) -> None:
    """In a process of its own: pytest's has threads. With one thread a child goes on. With more it has none of the
    threads that its parent decoded with, and is told so instead of waiting for them for ever."""
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; import test_faults as t; from pathlib import Path\n"
        f"llm = t.load(Path(sys.argv[1]), t.POLICIES[3], {n_threads}); alone = t.say(llm)\n"
        "child = os.fork()\n"
        "try: same = t.say(llm) == alone\n"
        "except t.pyskip.DecodeError as error: same = str(error)\n"
        "os.write(1, f'{child == 0} {same}\\n'.encode())\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)"
    )
    command = [sys.executable, "-B", "-c", code, str(pair[0]), *TEST_PATH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = sorted(done.stdout.splitlines())
    assert said[0] == "False True", done.stderr
    if n_threads == 1:
        assert said[1] == "True True"
    else:
        assert said[1].startswith("True this process was forked from one that decoded")


# The model's file while it is mapped


@pytest.fixture
def mapped(pair: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(pair[0], tmp_path / "m.gguf"))


def test_a_file_that_is_replaced_or_deleted_stays_whole(pair: list[Path], mapped: Path) -> None:
    with closing(load(mapped, "off")) as llm:
        before = say(llm)
        os.replace(shutil.copy(pair[1], mapped.with_suffix(".new")), mapped)
        assert say(llm) == before
        mapped.unlink()
        assert say(llm) == before


@pytest.mark.parametrize("change", ["written", "cut off"])
def test_a_file_that_is_written_to_is_noticed(pair: list[Path], mapped: Path, change: str) -> None:
    with closing(load(mapped, "off")) as llm:
        say(llm)
        if change == "written":
            shutil.copyfile(pair[1], mapped)
        else:
            os.truncate(mapped, 4096)
        with pytest.raises(pyskip.DecodeError, match="was written to while it is in use"):
            say(llm)


def test_calibration_notices_a_file_that_is_written_to(mapped: Path) -> None:
    window = np.array([1, 270, 271], np.int32)
    with closing(load(mapped, "off")) as llm, BatchContext(llm, 1, 16, 16) as context:
        context.decode_window(window)
        os.truncate(mapped, 4096)
        with pytest.raises(pyskip.DecodeError, match="was written to while it is in use"):
            context.decode_window(window)


def test_a_file_that_is_cut_off_within_a_token_is_one_line(mapped: Path) -> None:
    """SIGBUS, which no check before a token can rule out."""
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; import test_faults as t; from pathlib import Path\n"
        "llm = t.load(Path(sys.argv[1]), 'off'); from pyskip.binding.crash import exit_on_crash; exit_on_crash(2)\n"
        "os.truncate(sys.argv[1], 4096); llm.engine.file = None; t.say(llm)"
    )
    command = [sys.executable, "-B", "-c", code, str(mapped), *TEST_PATH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "can no longer be read" in done.stderr


# Where nothing can be written


def as_anyone(*command: str) -> list[str]:
    """Without root's right to write everywhere."""
    return [*(["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []), *command]


def test_a_folder_that_is_read_only(pair: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    model = Path(shutil.copy(pair[0], folder / "m.gguf"))
    text = tmp_path / "text"
    text.write_text("w1 w2 w3 " * 40)
    folder.chmod(0o500)
    pyskip_ = [sys.executable, "-B", "-m", "pyskip"]
    env = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    for args, status in (
        (["generate", str(model), "-p", "w1", "-n", "2", "-t", "1"], 0),
        (["calibrate", str(model), "--text", str(text), "-t", "1"], 1),
        (["eval", str(model), "--text", str(text), "-c", "16", "--resume", str(folder / "journal"), "-t", "1"], 1),
    ):
        done = subprocess.run(as_anyone(*pyskip_, *args), capture_output=True, text=True, timeout=120, env=env)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("pyskip: ")
    assert [path.name for path in folder.iterdir()] == ["m.gguf"]
    folder.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_scored(cli: Cli, pair: list[Path], tmp_path: Path) -> None:
    """RLIMIT_FSIZE fails the journal's writes in the middle of a record, as a full disk does; then there is room."""
    text, journal = tmp_path / "text", tmp_path / "journal"
    text.write_text("w1 w2 w3 w4 w5 " * 100)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    args = ("eval", str(pair[0]), "--text", str(text), "-c", "32", "-t", "1", "--json")
    full = cli(*args, "--resume", str(journal), preexec_fn=limit)
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1, full.stderr
    assert str(journal) in full.stderr
    assert 0 < journal.stat().st_size <= 4000
    again, whole = cli(*args, "--resume", str(journal)), cli(*args)
    assert again.returncode == whole.returncode == 0, again.stderr
    assert again.stdout.partition('"model"')[0] == whole.stdout.partition('"model"')[0]
