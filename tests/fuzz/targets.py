"""What is fuzzed. Each target makes its i-th input from a seed, runs it and says what is wrong, if anything.

skip     a skip specification: parse_skip(), and set on a model, natively
task     a task file: read_task(), and in tokens
profile  a profile file: the native reader, and in force while a model decodes
session  a session of pyskip chat: read, and continued
pair     a model and a profile: the whole command line (pyskip.cli.main.run)
calls    calls of pyskip.Llama one after the other (calls.py)

All run in one process, input after input, which run.py replaces if an input ends it. A PyskipError of one line is an
answer. Any other exception, a signal, a second line, CPU time over LIMIT_S or memory over LIMIT_BYTES is a find.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import mutate
from seeds import make as make_seeds

import pyskip
from pyskip.chat.conversation import Conversation
from pyskip.chat.session import load_session, save_session
from pyskip.cli.main import run as run_cli
from pyskip.evaluation.tasks import TaskItem, encode, read_task
from pyskip.models.profile import Profile
from pyskip.policy import Profiled, parse_skip

Input = dict[str, bytes]  # file name -> content

LIMIT_S = 10  # of CPU time, an input
LIMIT_BYTES = 2 << 30  # of address space, beyond what a target has when it starts
N_LINE = 1000  # characters of an error line, the path of the file included


def limit_cpu(seconds: float) -> None:
    """SIGPROF, which ends the process, after so much CPU time from now; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory() -> None:
    """From now on an allocation beyond LIMIT_BYTES fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Wrong(Exception):
    """A find, in words."""


def accepted(call: Callable[[], object]) -> bool:
    """Whether the call ends without an error. Raises Wrong for anything but a PyskipError of one line."""
    try:
        call()
    except pyskip.PyskipError as error:
        check_line(str(error))
        return False
    except Exception as error:  # MemoryError too
        raise Wrong(f"{type(error).__name__}: {error}") from error
    return True


def check_line(line: str) -> None:
    if not line or len(line) > N_LINE or "\n" in line or "\r" in line:
        raise Wrong(f"an error of {len(line)} characters, expected one line of at most {N_LINE}: {line[:200]!r}")


class Target(ABC):
    """seeds: a folder for the files that mutation starts from."""

    def __init__(self, seeds: Path) -> None:
        models, profiles = make_seeds(seeds)
        self.models = {name: path.read_bytes() for name, path in models.items()}
        self.profiles = {name: path.read_bytes() for name, path in profiles.items()}
        self.walks = {id(data): mutate.Walk(data) for data in (*self.models.values(), *self.profiles.values())}

    def prepare(self, folder: Path) -> None:
        """What run() needs and make() does not, in the process that runs. folder: its own."""
        self.folder = folder
        model = folder / "f32.gguf"
        model.write_bytes(self.models["f32"])
        (folder / "f32.skip.gguf").write_bytes(self.profiles["linear"])
        self.llm = pyskip.Llama(model, n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)

    def mutant(self, rng: Random, data: bytes) -> bytes:
        return mutate.gguf(rng, data, self.walks[id(data)])

    @abstractmethod
    def make(self, rng: Random) -> Input:
        """An input."""

    @abstractmethod
    def run(self, given: Input) -> bool:
        """Whether the input was accepted. Raises Wrong."""

    def decode(self) -> None:
        """A few tokens under the policy in force."""
        self.llm.reset()
        self.llm.mark_generated(0)
        for tokens in ([1, 270, 271], [272], [273]):
            self.llm.eval(tokens)


class Skip(Target):
    def make(self, rng: Random) -> Input:
        return {"spec": mutate.spec(rng).encode("utf-8", "surrogatepass"), "decode": b"1" * (rng.random() < 0.05)}

    def run(self, given: Input) -> bool:
        return accepted(lambda: self._set(given))

    def _set(self, given: Input) -> None:
        policy = parse_skip(os.fsdecode(given["spec"]))  # as it comes from a command line
        assert parse_skip(str(policy)) == policy, f"{policy} is read as {parse_skip(str(policy))}"
        self.llm.skip = policy
        if given["decode"]:
            self.decode()


class Task(Target):
    def make(self, rng: Random) -> Input:
        return {"task.jsonl": mutate.task(rng)}

    def run(self, given: Input) -> bool:
        path = self.folder / "task.jsonl"
        path.write_bytes(given["task.jsonl"])
        return accepted(lambda: self._read(path))

    def _read(self, path: Path) -> None:
        items = read_task(path)
        encode(self.llm, [item for item in items if isinstance(item, TaskItem)], 64)


class ProfileFile(Target):
    def make(self, rng: Random) -> Input:
        return {"p.skip.gguf": self.mutant(rng, rng.choice(list(self.profiles.values())))}

    def run(self, given: Input) -> bool:
        path = self.folder / "p.skip.gguf"
        path.write_bytes(given["p.skip.gguf"])
        return accepted(lambda: self._use(path))

    def _use(self, path: Path) -> None:
        profile = Profile(path)
        attn = profile.attention_curve[-1].rate if profile.attention_curve else None
        policy = Profiled(prefill=True, warmup=0, attn=attn)
        try:
            self.llm.engine.skip.set_policy(policy, profile)
            self.decode()
        finally:
            self.llm.skip = "off"


class SessionFile(Target):
    """Its archive is sound and its sums are right: zipfile's own checks would refuse everything else."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.path = folder / "s.session"
        conversation = Conversation(self.llm, "w5", n_predict=4)
        "".join(conversation.say("w1 w2 w3"))
        save_session(self.path, self.llm, conversation.system, conversation.turns)
        with zipfile.ZipFile(self.path) as archive:
            self.document, self.state = archive.read("session.json"), archive.read("state.bin")

    def make(self, rng: Random) -> Input:
        return {"mutation": rng.randbytes(8)}  # of a session that a model wrote, which this process has not

    def run(self, given: Input) -> bool:
        rng = Random(given["mutation"])
        which = rng.random()
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("session.json", mutate.session(rng, self.document) if which > 0.7 else self.document)
            archive.writestr("state.bin", mutate.numbers(rng, self.state) if which < 0.8 else self.state)
        return accepted(self._use)

    def _use(self) -> None:
        session, _ = load_session(self.path, self.llm)
        conversation = Conversation(self.llm, session.system, n_predict=2)
        conversation.turns = list(session.turns)
        "".join(conversation.say("w4"))


SKIPS = ("profile:prefill=1,warmup=0", "0.4", "profile:error=1e9,warmup=0", "random:rate=1,warmup=0,stand_in=1",
         "profile:rate=0.3,attn=0.5,warmup=0")  # fmt: skip
OTHER_SKIPS = ("off", "cosine:threshold=-1,warmup=0,cold_start=0,cold_end=0", "static:1", "static:attn=1",
               "adaskip:n=2", "random:rate=1,attn=1,warmup=0")  # fmt: skip


class Pair(Target):
    def prepare(self, folder: Path) -> None:
        self.folder = folder
        (self.folder / "text").write_bytes(b" w1 w2 w3 w4 w5 w6 w7 w8" * 4)

    def make(self, rng: Random) -> Input:
        model, profile = rng.choice(list(self.models.values())), rng.choice(list(self.profiles.values()))
        which = rng.random()
        skip = rng.choice(SKIPS) if rng.random() < 0.6 else rng.choice(OTHER_SKIPS)
        tail = ["-t", "1", "--skip", skip, "--profile", "p.skip.gguf"]
        args = rng.choices(
            (
                ["generate", "m.gguf", "-p", "w1 w2 w3", "-n", "4", "-c", "64", *tail],
                ["chat", "m.gguf", "-n", "3", "-c", "64", "--seed", "1", *tail],
                ["eval", "m.gguf", "--text", "text", "-c", "16", *tail],
                ["info", "m.gguf", "--json"],
            ),
            (8, 2, 1, 1),
        )[0]
        return {
            "m.gguf": self.mutant(rng, model) if which < 0.8 else model,
            "p.skip.gguf": self.mutant(rng, profile) if which > 0.6 else profile,
            "args": json.dumps(args).encode(),
            "own": b"1" * (rng.random() < 0.9),  # the profile says that it is this model's
        }

    def run(self, given: Input) -> bool:
        os.chdir(self.folder)
        for name in ("m.gguf", "p.skip.gguf"):
            Path(name).write_bytes(given[name])
        if given["own"]:
            _own(Path("m.gguf"), Path("p.skip.gguf"))
        with redirected("chat" in str(given["args"])) as said:
            status = run_cli(json.loads(given["args"]))
            sys.stdout.flush()
        check_end(status, said())
        return status == 0


def _own(model: Path, profile: Path) -> None:
    """Puts the model's fingerprint into the profile, if both can be read so far."""
    try:
        fingerprint = pyskip.inspect(model).fingerprint.encode()
    except pyskip.PyskipError:
        return
    data = profile.read_bytes()
    at = data.find(b"fnv1a64:")
    if at >= 0:
        profile.write_bytes(data[:at] + fingerprint + data[at + len(fingerprint) :])


@contextmanager
def redirected(is_chat: bool) -> Iterator[Callable[[], str]]:
    """stdin, stdout and stderr, native code's too, to files of the working directory. Gives what stderr holds."""
    Path("in").write_bytes(b"w1 w2\nw3\n" if is_chat else b"")
    before = [os.dup(fd) for fd in range(3)]
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    files = [os.open("in", os.O_RDONLY), os.open("out", flags), os.open("err", flags)]
    try:
        for fd, file in enumerate(files):
            os.dup2(file, fd)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 without what the last one had read
        yield lambda: Path("err").read_text("utf-8", "replace")
    finally:
        for fd, old in enumerate(before):
            os.dup2(old, fd)
            os.close(old)
            os.close(files[fd])


def check_end(status: int, said: str) -> None:
    """How a command ended, and what it said on stderr."""
    lines = said.splitlines()
    if status not in (0, 1) or "Traceback" in said or any(not line.startswith("pyskip: ") for line in lines):
        raise Wrong(f"exit {status}, stderr: {said[-600:]!r}")
    if "memory" in said:
        raise Wrong(said)
    if status == 1:
        if len(lines) != 1 and " answers, " not in lines[0]:  # of a chat, told before the error that ends it
            raise Wrong(f"{len(lines)} lines: {said[-600:]!r}")
        check_line(lines[-1])


TARGETS: dict[str, type[Target]] = {
    "skip": Skip,
    "task": Task,
    "profile": ProfileFile,
    "session": SessionFile,
    "pair": Pair,
}
