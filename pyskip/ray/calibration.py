"""`pyskip calibrate --ray`: the sums of a calibration, each worker's over windows of its own, added up. What is fitted
to them is one process's but for the order in which floats are added."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.gather import Kind, LayerSums, gather
from ..calibration.sublayer import Sublayer
from ..models.profile import Profile
from ..runtime.llama import Llama
from .cluster import n_workers, outcome
from .worker import WorkerModel, loaded

__all__ = ["RayGather"]

Windows = Sequence[npt.NDArray[np.int32]]


@dataclass(frozen=True)
class RayGather:
    """gather() over a cluster. ray: connected. name: of the model, found by each machine for itself. A worker returns
    the sums of all layers, which must fit its memory and Ray's store."""

    ray: Any
    name: str
    n_threads: int  # of a worker, and cores that Ray gives it

    def __call__(
        self,
        llm: Llama,
        windows: Windows,
        kind: Kind,
        visit: Callable[[int, LayerSums], None],
        *,
        warmup: int,
        sublayer: Sublayer,
        profile: Profile | None = None,
        targets: Sequence[npt.NDArray[np.float32]] = (),
        progress: Callable[[int, int], None],
    ) -> None:
        n_window = max(map(len, windows))
        sizes = {"n_ctx": n_window, "n_batch": n_window, "n_ubatch": n_window}
        arguments = {**sizes, "n_threads": self.n_threads, "n_threads_batch": self.n_threads, "kernels": llm.kernels}
        model = WorkerModel(self.name, llm.engine.info.fingerprint, tuple(arguments.items()))
        task = self.ray.remote(num_cpus=self.n_threads, max_retries=-1)(sums)
        draft = None if profile is None else profile.path.read_bytes()
        n = min(n_workers(self.ray, self.n_threads), len(windows))
        parts = [slice(i * len(windows) // n, (i + 1) * len(windows) // n) for i in range(n)]
        found: dict[int, LayerSums] = {}
        done = 0
        tasks = [task.remote(model, windows[part], kind, warmup, sublayer, draft, targets[part]) for part in parts]
        for part, one in zip(parts, tasks, strict=True):
            for il, more in outcome(self.ray, one).items():
                found[il] = added(found[il], more) if il in found else more
            done += part.stop - part.start
            progress(done, len(windows))
        for il in sorted(found):
            visit(il, found[il])


def added(a: LayerSums, b: LayerSums) -> LayerSums:
    return replace(
        a, gram=a.gram + b.gram, cross=a.cross + b.cross, energy=a.energy + b.energy, n_tokens=a.n_tokens + b.n_tokens
    )


def sums(
    model: WorkerModel,
    windows: Windows,
    kind: Kind,
    warmup: int,
    sublayer: Sublayer,
    draft: bytes | None,
    targets: Sequence[npt.NDArray[np.float32]],
) -> dict[int, LayerSums]:
    """In a worker: those over its windows, by layer. draft: the profile's file."""
    llm, found = loaded(model), dict[int, LayerSums]()

    def keep(il: int, one: LayerSums) -> None:
        found[il] = replace(one, gram=one.gram.copy(), cross=one.cross.copy())

    with tempfile.TemporaryDirectory(prefix="pyskip-") as folder:
        profile = None
        if draft is not None:
            path = Path(folder) / "draft.skip.gguf"
            path.write_bytes(draft)
            profile = Profile(path)
        gather(
            llm, windows, kind, keep, warmup=warmup, sublayer=sublayer, profile=profile, targets=targets,
            progress=lambda *_: None,
        )  # fmt: skip
    return found
