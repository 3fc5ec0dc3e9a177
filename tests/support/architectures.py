"""What tiny models of every architecture do under pyskip and under unpatched llama.cpp: a process for each build.

architectures.py pyskip    MODELS K/N OUT.json              every N-th of the MODELS/*.gguf that make-archs wrote
architectures.py reference MODELS K/N OUT.json FOUND.json   what must be equal, for the layers that the first run found
architectures.py commands  MODELS K/N OUT.json FOUND.json   how the command line's commands end

Each model has processes of its own, so that one that aborts says so and stops no other. Asserts nothing: collected.py
calls it for test_architectures.py and for the page.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.argv[1:2] != ["reference"]:
    import pyskip  # isort: skip  (before llama_cpp)
    from pyskip.calibration.sublayer import Sublayer
    from pyskip.models.profile import Profile
    from pyskip.policy import Cosine, Policy, Profiled, Static
    from pyskip.runtime.context import SkipContext

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools" / "models"))
from zero_layers import zero_layers

if TYPE_CHECKING or sys.argv[1:2] != ["reference"]:
    from architectures_use import examine_command_line, examine_use
    from make_profile import make_profile

Floats = npt.NDArray[np.float32]
Record = dict[str, Any]

N_TOKENS, N_PROMPT = 24, 18
N_TRACE = 1024  # more than there ever are
FFN_DOWN = re.compile(r"(?:dec\.)?blk\.(\d+)\.(?:ffn_down(?:_\w+)?|channel_mix_value)\.weight$")
ATTENTION = re.compile(r"(?:dec\.)?blk\.(\d+)\.attn_o(?:utput)?\.weight$")
NEVER = 2.0  # a cosine's threshold that none reaches


class Session:
    """A context on one thread, with an f32 cache and no flash attention: batches differ from steps by float noise."""

    def __init__(self, path: Path) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model, "llama.cpp cannot load it"
        self.ctx = self._open(embeddings=False)
        self.is_encoder = not llama_cpp.llama_get_memory(self.ctx)
        self.is_encoder |= path.stem.startswith(("llama-embed", "t5encoder"))  # they have a KV cache, and no logits
        if self.is_encoder:
            llama_cpp.llama_free(self.ctx)
            self.ctx = self._open(embeddings=True)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        rng = np.random.default_rng(1)
        self.mark: Callable[[], None] = lambda: None  # after every clear, which forgets what is generated
        self.tokens = rng.integers(3, min(self.n_vocab, 128), N_TOKENS).tolist()

    def _open(self, embeddings: bool) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 128
        params.n_seq_max = params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.embeddings = embeddings
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        ctx = llama_cpp.llama_init_from_model(self.model, params)
        assert ctx, "llama.cpp cannot make a context"
        return ctx

    def clear(self) -> None:
        memory = llama_cpp.llama_get_memory(self.ctx)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        self.mark()
        if llama_cpp.llama_model_has_encoder(self.model):
            with self._batch(0, N_TOKENS) as batch:
                assert llama_cpp.llama_encode(self.ctx, batch) == 0

    @contextmanager
    def _batch(self, first: int, last: int, n_outputs: int = 0) -> Iterator[Any]:
        n = last - first
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i] = self.tokens[first + i], first + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i >= n - n_outputs
        yield batch
        llama_cpp.llama_batch_free(batch)

    def decode(self, first: int, last: int, n_outputs: int | None = None) -> Floats:
        """Logits [n_outputs, n_vocab] of the last of these tokens, given in one batch; of an encoder all embeddings."""
        n_outputs = last - first if n_outputs is None else n_outputs
        with self._batch(first, last, n_outputs) as batch:
            status = llama_cpp.llama_decode(self.ctx, batch)
        assert status == 0, f"llama_decode returned {status}"
        outputs, width = llama_cpp.llama_get_logits(self.ctx), self.n_vocab
        if self.is_encoder:
            outputs, width = llama_cpp.llama_get_embeddings(self.ctx), llama_cpp.llama_model_n_embd_out(self.model)
        return np.array(np.ctypeslib.as_array(outputs, shape=(n_outputs, width)), np.float32)

    def run(self) -> Floats:
        """From an empty context: a prompt in one batch, with few outputs, and the rest in single steps."""
        self.clear()
        if self.is_encoder:
            return self.decode(0, N_TOKENS)
        prompt = self.decode(0, N_PROMPT, n_outputs=4)
        return np.concatenate([prompt, *(self.decode(i, i + 1) for i in range(N_PROMPT, N_TOKENS))])

    def batch_and_steps(self) -> tuple[Floats, Floats]:
        self.clear()
        batch = self.decode(0, N_TOKENS)
        self.clear()
        return batch, np.concatenate([self.decode(i, i + 1) for i in range(N_TOKENS)])


def digest(logits: Floats) -> str:
    return hashlib.sha256(logits.tobytes()).hexdigest()


def distance(a: Floats, b: Floats) -> float:
    """Largest difference, in units of the values' spread, but for logits that a model forbids: Chameleon, in the first
    row of a batch only."""
    allowed = np.maximum(np.abs(a), np.abs(b)) < 1e30
    return float(np.abs(a - b)[allowed].max() / a[allowed].std())


def examine_reference(path: Path, found: Record) -> Record:
    """Unpatched: dense, and with the FFN, and the attention, of each layer that can skip set to zero."""
    record: Record = {"off": digest(Session(path).run()), "zeroed": {}, "zeroed_attention": {}}
    with tempfile.TemporaryDirectory() as folder:
        zeroed = Path(folder) / "zeroed.gguf"
        for il in found.get("layers", []):
            zero_layers(path, zeroed, [il])
            record["zeroed"][str(il)] = digest(Session(zeroed).run())
        for il in found.get("attention", []):
            zero_layers(path, zeroed, [], [il])
            record["zeroed_attention"][str(il)] = digest(Session(zeroed).run())
    return record


def describe(path: Path) -> Record:
    """What its weights tell of its blocks."""
    reader = gguf.GGUFReader(path)
    names = [tensor.name for tensor in reader.tensors]
    field = reader.fields["general.architecture"]
    return {
        "architecture": str(field.contents()),
        "ffn_layers": sorted({int(m[1]) for m in map(FFN_DOWN.match, names) if m}),
        "attention_layers": sorted({int(m[1]) for m in map(ATTENTION.match, names) if m}),
        "experts": any("ffn_down_exps" in name for name in names),
        "shared": any(re.search(r"ffn_down_(shexp|chexps)", name) for name in names),
        "dense": any(re.match(r"(dec\.)?blk\.\d+\.ffn_down\.weight", name) for name in names),
        "mixing": any("channel_mix_value" in name for name in names),
        "recurrent": any(re.search(r"\.(ssm_|time_mix_|shortconv\.)", name) for name in names),
    }


def examine_pyskip(path: Path, _: Record) -> Record:
    record = describe(path)
    session = Session(path)
    skip = SkipContext(session.ctx)
    off = session.run()
    record |= {"off": digest(off), "finite": bool(np.isfinite(off).all()), "encoder": session.is_encoder}
    record["n_layer"] = skip.n_layer
    try:
        layers = record["layers"] = skip.skippable()
    except pyskip.PolicyError as error:
        record["policy_error"] = str(error)
        return record
    record["noise"] = distance(*session.batch_and_steps())
    policy = Under(session, skip)
    record["static"] = {str(il): digest(policy.run(Static((il,)))) for il in layers}
    under = record["under"] = {"static": policy.compare(Static(layers))}
    attention = record["attention"] = skip.skippable_attention()
    record["static_attention"] = {str(il): digest(policy.run(Static(attention=(il,)))) for il in attention}
    if attention:
        under["attention"] = policy.compare(Static(attention=attention))
    record["cosine_never"], under["cosine"] = policy.examine_cosine(layers[0])
    record["profile_never"], under["profile"] = examine_profile(path, policy)
    if any(il + 1 < skip.n_layer for il in attention):
        record["attention_never"], under["attention gates"] = examine_attention_gates(path, policy)
    skip.set_policy(pyskip.parse_skip("off"))
    record["off_again"] = digest(session.run())
    return record


class Under:
    """The session under policies."""

    def __init__(self, session: Session, skip: SkipContext) -> None:
        self.session, self.skip = session, skip
        skip.set_trace(N_TRACE)
        session.mark = lambda: skip.set_generated_from(0, 0)

    def run(self, policy: Policy, profile: Profile | None = None) -> Floats:
        self.skip.set_policy(policy, profile)
        self.skip.take_trace(N_TRACE)
        return self.session.run()

    def examine_cosine(self, il: int) -> tuple[str, Record]:
        """Never skipping; and with a threshold among the cosines of layer il, so that no rounding decides."""
        never = digest(self.run(Cosine(threshold=NEVER, cold_start=0, cold_end=0, warmup=0)))
        between = threshold_between(self.skip.take_trace(N_TOKENS).similarity[:, il])
        return never, self.compare(Cosine(threshold=between, run=1, cold_start=0, cold_end=0, warmup=0))

    def compare(self, policy: Policy, profile: Profile | None = None) -> Record:
        """One batch, and then single steps: their decisions and logits, and the counters over both."""
        self.skip.set_policy(policy, profile)
        self.skip.reset_counters()
        self.skip.take_trace(N_TRACE)
        batch, steps = self.session.batch_and_steps()
        stats = self.skip.stats(policy)
        in_batch, alone = self.skip.take_trace(N_TOKENS), self.skip.take_trace(N_TOKENS)
        return {
            "n_tokens": stats.n_tokens,
            "sums": [e + s for e, s in zip(stats.evaluated, stats.skipped, strict=True)],
            "skipped": list(stats.skipped),
            "attention_sums": [e + s for e, s in zip(stats.attention_evaluated, stats.attention_skipped, strict=True)],
            "attention_skipped": list(stats.attention_skipped),
            "n_differ": int((in_batch.skipped != alone.skipped).sum() + (in_batch.attention != alone.attention).sum()),
            "noise": distance(batch, steps),
            "gated": [il for il in range(self.skip.n_layer) if np.isfinite(alone.similarity[:, il]).any()],
            "attention_gated": np.flatnonzero(np.isfinite(alone.attention_similarity).any(axis=0)).tolist(),
        }


def threshold_between(values: Floats) -> float:
    """The middle of the widest gap among the middle half of the values."""
    middle = np.sort(values)[len(values) // 4 : -(len(values) // 4) or None]
    widest = int(np.argmax(np.diff(middle)))
    return float((middle[widest] + middle[widest + 1]) / 2)


def examine_profile(path: Path, policy: Under) -> tuple[str, Record]:
    """As examine_cosine, under a random profile, which has a gate and a stand-in wherever there can be one."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "random.skip.gguf"
        make_profile(path, target, rank=32, kind="f32")
        profile = Profile(target)
        never = digest(policy.run(Profiled(error=1e-30, warmup=0), profile))
        scores = policy.skip.take_trace(N_TOKENS).similarity
        between = threshold_between(scores[np.isfinite(scores)])
        return never, policy.compare(Profiled(error=float(np.exp(between)), warmup=0), profile)


def examine_attention_gates(path: Path, policy: Under) -> tuple[str, Record]:
    """The same of attention, with the FFNs computed: under a profile that has a gate in every layer but the last."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "random.skip.gguf"
        make_profile(path, target, rank=32, kind="f32", attention=True)
        profile = Profile(target)
        never = digest(policy.run(Sublayer.ATTENTION.below(-np.inf, warmup=0), profile))
        scores = policy.skip.take_trace(N_TOKENS).attention_similarity
        between = threshold_between(scores[np.isfinite(scores)])
        return never, policy.compare(Sublayer.ATTENTION.below(between, warmup=0), profile)


def in_child(examine: Callable[[Path, Record], Record], path: Path, found: Record) -> Record:
    """The record, or how the process ended."""

    def work(pipe: Connection) -> None:
        try:
            pipe.send(examine(path, found))
        except BaseException as error:
            pipe.send({"error": f"{type(error).__name__}: {error}"})

    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=work, args=(send,))
    child.start()
    send.close()
    try:
        record: Record = receive.recv()
    except EOFError:
        child.join()
        record = {"error": f"ended with exit code {child.exitcode}"}
    child.join()
    return record


def main() -> None:
    build, models, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[4])
    k, n = map(int, sys.argv[3].split("/"))
    found = json.loads(Path(sys.argv[5]).read_text()) if build != "pyskip" else {}
    is_patched = hasattr(llama_cpp.llama_cpp._lib, "pyskip_build")
    assert is_patched == (build != "reference")
    examine: Callable[[Path, Record], Record] = examine_reference
    if is_patched:
        examine = examine_pyskip if build == "pyskip" else examine_command_line
    paths = sorted(models.glob("*.gguf"))[k::n]
    records = {path.stem: in_child(examine, path, found.get(path.stem, {})) for path in paths}
    if build == "pyskip":
        for path in paths:
            records[path.stem]["use"] = in_child(examine_use, path, {})
    out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
