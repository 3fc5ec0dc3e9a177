"""Sequences of calls of pyskip.Llama, against a model of what must happen: which tokens are in the cache, which policy
is in force, and which calls are refused. Target `calls` of run.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from targets import Input, Target, Wrong, accepted

import pyskip

__all__ = ["Calls"]

N_CTX = 64
POLICIES = ("off", "static:1", "static:0,2", "cosine:threshold=-1,warmup=0,cold_start=0,cold_end=0", "0.4",
            "profile:prefill=1,warmup=0", "random:rate=0.5,warmup=0", "static:7", "static:attn=1",
            "adaskip:n=2", "prompt:rate=0.4", "cosine:run=-1",
            "nothing")  # fmt: skip
REFUSED = ("static:7", "cosine:run=-1", "nothing")
WEIGHTS = {
    "eval": 6, "generate": 6, "skip": 5, "reset": 2, "save_state": 2, "load_state": 2, "save_sequence": 2, "restore": 2,
    "abort": 1, "thread": 1, "leave": 1, "go_on": 2, "tokenize": 1, "mark": 1, "threads": 1, "close": 1, "again": 1,
}  # fmt: skip


class Calls(Target):
    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.path = folder / "f32.gguf"
        self._open()

    def _open(self) -> None:
        # without flash attention, whose batches and single steps differ by more than these models' ties
        self.llm = pyskip.Llama(self.path, n_ctx=N_CTX, n_threads=1, n_threads_batch=1, flash_attn=False, verbose=False)

    def make(self, rng: Random) -> Input:
        names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(2, 16))
        return {"calls": json.dumps([[name, rng.getrandbits(32)] for name in names]).encode()}

    def run(self, given: Input) -> bool:
        self.llm.set_abort(False)
        self.llm.skip = "off"
        self.llm.reset()
        self.tokens: list[int] = []  # that the cache must hold
        self.policy = str(self.llm.skip)
        self.is_open = True
        self.state: tuple[Any, list[int]] | None = None
        self.sequence: tuple[bytes, list[int]] = b"", []
        self.left: Any = None
        self.is_plain = True  # the cache holds what eval() read, and no mark or state of another time
        all_accepted = True
        try:
            for name, seed in json.loads(given["calls"]):
                all_accepted &= self._call(name, Random(seed))
        finally:
            self.left = None
            if not self.is_open:
                self._open()
        return all_accepted

    def _call(self, name: str, rng: Random) -> bool:
        """Whether it was accepted. Raises Wrong if that, or what it left, is not as it must be."""
        if name == "again":
            if self.is_open:
                return True
            self._open()
            self.is_open, self.tokens, self.policy, self.left = True, [], "off", None
            return True
        if name == "close":
            self.llm.close()
            self.is_open = False
            return True
        must = getattr(self, f"_{name}")(rng)
        self.is_plain &= name not in ("load_state", "restore", "leave", "go_on", "mark")
        found = accepted(must[0])
        if must[1] is not None and found != (must[1] and self.is_open):
            raise Wrong(f"{name} was {'accepted' if found else 'refused'}, expected the contrary")
        if found:
            must[2]()
        self._check(name)
        return found

    def _check(self, name: str) -> None:
        if not self.is_open:
            return
        held = self.llm.input_ids[: self.llm.n_tokens].tolist()
        if held != self.tokens:
            raise Wrong(f"{name} left the tokens {held}, expected {self.tokens}")
        if str(self.llm.skip) != self.policy:
            raise Wrong(f"{name} left the policy {self.llm.skip}, expected {self.policy}")

    # Each: what to call, whether it must be accepted (None: it may be), what then is so

    def _set(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def _some(self, rng: Random, most: int) -> list[int]:
        return [rng.randrange(3, 288) for _ in range(rng.randint(1, most))]

    def _eval(self, rng: Random) -> Any:
        tokens = self._some(rng, 40)
        fits = len(self.tokens) + len(tokens) <= N_CTX
        return lambda: self.llm.eval(tokens), fits, lambda: self._set([*self.tokens, *tokens])

    def _generate(self, rng: Random) -> Any:
        prompt = self.tokens[: rng.randint(0, len(self.tokens))] + (self._some(rng, 12) if rng.random() < 0.7 else [])
        n = rng.randint(1, 4)
        fits = len(prompt) > 0 and len(prompt) + n - 1 <= N_CTX
        taken: list[int] = []

        def call() -> None:
            generator = self.llm.generate(prompt, temp=0)
            for _ in range(n):
                taken.append(next(generator))
            generator.close()

        if not fits:  # it ends somewhere in between
            return lambda: call() if not prompt or len(prompt) > N_CTX else self._end(call), False, lambda: None
        return call, True, lambda: self._same(prompt, taken)

    def _end(self, call: Callable[[], None]) -> None:
        """The cache runs full, and is left full."""
        try:
            call()
        finally:
            self.tokens = self.llm.input_ids[: self.llm.n_tokens].tolist() if self.is_open else self.tokens

    def _same(self, prompt: list[int], taken: list[int]) -> None:
        """What used the cache says what comes without it, if no earlier answer is in it, decided otherwise."""
        self.tokens = [*prompt, *taken[:-1]]
        if self.is_plain and (self.policy == "off" or self.policy.startswith("static")):
            self.llm.reset()
            generator = self.llm.generate(prompt, temp=0)
            fresh = [next(generator) for _ in taken]
            generator.close()
            if fresh != taken:
                raise Wrong(f"{taken} with a cache, expected {fresh} as without")
        self.is_plain = False

    def _skip(self, rng: Random) -> Any:
        skip = rng.choice(POLICIES)

        def done() -> None:
            self.policy = str(pyskip.parse_skip(skip))

        return lambda: setattr(self.llm, "skip", skip), skip not in REFUSED, done

    def _reset(self, _rng: Random) -> Any:
        def done() -> None:
            self.tokens, self.is_plain = [], True

        return self.llm.reset, True, done

    def _save_state(self, _rng: Random) -> Any:
        def call() -> None:
            self.state = self.llm.save_state(), list(self.tokens)

        return call, True, lambda: None

    def _load_state(self, _rng: Random) -> Any:
        if self.state is None:
            return self.llm.n_ctx, True, lambda: None
        state, tokens = self.state
        return lambda: self.llm.load_state(state), True, lambda: self._set(list(tokens))

    def _save_sequence(self, _rng: Random) -> Any:
        def call() -> None:
            self.sequence = self.llm.save_sequence(), list(self.tokens)

        return call, True, lambda: None

    def _restore(self, rng: Random) -> Any:
        state, tokens = self.sequence
        damaged = rng.random() < 0.3 and len(state) > 8
        given = state[: len(state) // 2] if damaged else state
        reason: list[str | None] = []

        def done() -> None:
            if (reason[0] is None) != (bool(state) and not damaged):
                raise Wrong(f"a state of {len(given)} of {len(state)} bytes: {reason[0]}")
            self.tokens = list(tokens) if reason[0] is None else []

        return lambda: reason.append(self.llm.restore_sequence(tokens, given)), True, done

    def _abort(self, rng: Random) -> Any:
        tokens = self._some(rng, 4)

        def call() -> None:
            self.llm.set_abort(True)
            try:
                self.llm.eval(tokens)
            finally:
                self.llm.set_abort(False)

        return call, False, lambda: None

    def _thread(self, rng: Random) -> Any:
        """In another thread, while this one waits."""
        call, must, done = self._eval(rng)
        raised: list[BaseException] = []

        def body() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)

        def run() -> None:
            thread = threading.Thread(target=body)
            thread.start()
            thread.join()
            if raised:
                raise raised[0]

        must = must and self.left is None  # else this thread is in the middle of a generation
        return run, must, done

    def _leave(self, rng: Random) -> Any:
        """A stream that is not closed."""
        prompt = self._some(rng, 5)

        def call() -> None:
            self.left = self.llm.generate(prompt, temp=0)
            next(self.left)

        return call, True, lambda: self._set(prompt)

    def _go_on(self, _rng: Random) -> Any:
        """With what was left, wherever the cache is now; only crashes and leftovers count."""
        if self.left is None:
            return self.llm.n_ctx, True, lambda: None
        left = self.left

        def call() -> None:
            try:
                next(left)
            except StopIteration:
                pass
            except pyskip.PyskipError:
                self.left = None
                raise
            finally:
                if self.is_open:
                    self.tokens = self.llm.input_ids[: self.llm.n_tokens].tolist()

        return call, None, lambda: None  # refused where the context is full, or no logits are there

    def _tokenize(self, rng: Random) -> Any:
        text = rng.randbytes(rng.randint(0, 3000)).decode("latin-1").encode()
        return lambda: self.llm.detokenize(self.llm.tokenize(text)), True, lambda: None

    def _mark(self, rng: Random) -> Any:
        pos = rng.choice([None, 0, 5, 2**31])
        wrong = pos == 2**31

        def call() -> None:
            try:
                self.llm.mark_generated(pos)
            except ValueError as error:
                if isinstance(error, pyskip.PyskipError):
                    raise
                raise pyskip.DecodeError(str(error)) from None

        return call, not wrong, lambda: None

    def _threads(self, rng: Random) -> Any:
        """Two at once: one of them may be refused, neither crashes."""
        tokens = self._some(rng, 3)

        def body() -> None:
            accepted(lambda: self.llm.eval(tokens))

        def call() -> None:
            self.llm.reset()
            others = [threading.Thread(target=body) for _ in range(2)]
            for thread in others:
                thread.start()
            for thread in others:
                thread.join()
            self.tokens = self.llm.input_ids[: self.llm.n_tokens].tolist()
            if self.left is None and self.tokens not in (tokens, tokens * 2):
                raise Wrong(f"two threads left {self.tokens}, expected {tokens} once or twice")

        return call, True, lambda: None
