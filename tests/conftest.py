"""Models and builds that the tests share. No test needs a network or another address."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import make_profile as make_profile
import make_projector as make_projector
import make_random as make_random
import numpy as np
import pytest
import zero_layers as zero_layers
from hub_server import Hub, Repo, running_hub

import pyskip  # isort: skip  (before llama_cpp)
import llama_cpp

from pyskip.models import resolve

ROOT = Path(__file__).resolve().parent.parent
TEST_PATH = [str(ROOT / folder) for folder in ("tests", "tests/support", "tools/models")]  # for tests run as scripts
os.environ["HF_HUB_OFFLINE"] = "1"  # for all but the `hub` fixture's users: no test reaches the real one
EXACT: dict[str, Any] = {"type_k": 0, "type_v": 0, "flash_attn": False}  # of a Llama, as Raw(exact=True)
REFERENCE = Path(os.environ.get("PYSKIP_REFERENCE_LIB", ROOT / "build" / "reference" / "lib"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/wheel/aarch64.py."""
    parser.addoption(
        "--emulated", action="store_true", help="leave out what decodes the demo model or needs an unpatched libllama"
    )


# What a test needs that asks for a fixture, be it through another one: markers of pyproject.toml.
NEEDS = {
    "demo": {"model"},
    "run_logits": {"reference", "slow"},
    "hub": {"loopback"},
    "page_url": {"loopback"},
    "collected": {"reference", "slow"},
    "docs_bin": {"loopback", "model", "slow"},
    "site": {"slow"},
    "browser": {"browser", "loopback", "slow"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker in sorted(set().union(*(NEEDS[name] for name in fixtures & NEEDS.keys()))):
            item.add_marker(marker)


@pytest.fixture(scope="session")
def demo(request: pytest.FixtureRequest) -> Path:
    if request.config.getoption("--emulated"):
        pytest.skip("the demo model takes minutes on an emulated processor")
    return resolve("demo")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_random.make(path, make_random.SHAPES["tiny"])
    return path


@pytest.fixture(scope="session")
def demo_f32(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with f32 weights, by llama.cpp's own quantizer: the same figures, without the noise of quantised
    activations (with Q4_1, dense upstream's own logits differ by 1 and more between one batch and single steps)."""
    path = tmp_path_factory.mktemp("demo") / "f32.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 2
    assert llama_cpp.llama_model_quantize(str(demo).encode(), str(path).encode(), params) == 0
    return path


@pytest.fixture(scope="session")
def demo_llm(demo: Path) -> Iterator[pyskip.Llama]:
    llm = pyskip.Llama(demo, n_ctx=1024, n_threads=2, verbose=False)
    yield llm
    llm.close()


@pytest.fixture
def llm(demo_llm: pyskip.Llama) -> Iterator[pyskip.Llama]:
    """The demo model, dense and empty."""
    demo_llm.skip = "off"
    demo_llm.engine.clear()
    demo_llm.reset()
    demo_llm.reset_skip_stats()
    yield demo_llm
    demo_llm.skip = "off"


def tool(name: str) -> ModuleType:
    """A script of tools/."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


def open_llm(path: Path, n_ctx: int, **kwargs: Any) -> pyskip.Llama:
    """One whose window is one batch, unless told otherwise."""
    sizes = {"n_batch": n_ctx, "n_ubatch": n_ctx, **kwargs}
    return pyskip.Llama(path, n_ctx=n_ctx, n_threads=2, verbose=False, **sizes)


@pytest.fixture(scope="module")
def exact_llm(demo_f32: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(demo_f32, 128, **EXACT)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def tiny_llm(tiny: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(tiny, 128)
    yield llm
    llm.close()


@pytest.fixture(scope="session")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector of the tiny model's, for images."""
    return make_projector.make(tmp_path_factory.mktemp("eyes") / "mmproj.gguf", 64)


@pytest.fixture(scope="session")
def eyes_and_ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise, for images and audio."""
    return make_projector.make(tmp_path_factory.mktemp("eyes_and_ears") / "mmproj.gguf", 64, kind="both")


@pytest.fixture(scope="module")
def seeing_llm(tiny: Path, eyes: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(tiny, 512, mmproj=eyes, **EXACT)
    yield llm
    llm.close()


@pytest.fixture
def seeing(seeing_llm: pyskip.Llama) -> pyskip.Llama:
    """The tiny model with eyes, dense."""
    seeing_llm.skip = "off"
    return seeing_llm


Logits = Callable[..., dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def run_logits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """Runs logits.py in its own process, on unpatched llama.cpp or on pyskip."""
    if request.config.getoption("--emulated"):
        pytest.skip("the unpatched libllama is not this processor's")
    if not (REFERENCE / "libllama.so").exists():
        pytest.fail(f"no unpatched libllama in {REFERENCE}: run the tests with `make test`, which builds it")
    work = tmp_path_factory.mktemp("logits")

    def run(build: str, model: Path, *args: str) -> dict[str, np.ndarray[Any, Any]]:
        out = work / "out.npz"
        env = {
            **os.environ,
            "GGML_NO_BACKTRACE": "1",
            **({"LLAMA_CPP_LIB_PATH": str(REFERENCE)} if build == "reference" else {}),
        }
        command = [sys.executable, str(ROOT / "tests" / "support" / "logits.py"), build, str(model), str(out), *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(out) as arrays:
            return dict(arrays)

    return run


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a user does."""

    def run(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        kwargs.setdefault("stdin", subprocess.DEVNULL) if "input" not in kwargs else None
        return subprocess.run(
            [sys.executable, "-m", "pyskip", *args], capture_output=True, text=True, timeout=120, **kwargs
        )

    return run


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """A Hugging Face Hub with one repository of a model in four quantisations (of which only the names differ)."""
    content = tiny.read_bytes()
    with running_hub() as hub:
        names = ("Q2_K", "Q4_K_M", "Q8_0", "F16")
        files = {f"Tiny-{name}.gguf": content + name.encode() for name in names}
        hub.repos["some-one/Tiny-GGUF"] = Repo({"README.md": b"#", "mmproj-F32.gguf": b"", **files})
        yield hub


@pytest.fixture
def hub_env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a user of that Hub, with a cache of its own and no token."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}


@pytest.fixture
def hub_cli(
    cli: Callable[..., subprocess.CompletedProcess[str]], hub_env: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in that environment, and with what is given by name."""

    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return cli(*args, env={**hub_env, **more})

    return run


@pytest.fixture(scope="session")
def page_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny models, the first with a profile, for conversations that take a while."""
    folder = tmp_path_factory.mktemp("page")
    fitted, plain = folder / "fitted.gguf", folder / "plain.gguf"
    shape = dataclasses.replace(make_random.SHAPES["tiny"], n_ctx=8192)
    make_random.make(fitted, shape)
    make_profile.make_profile(fitted, folder / "fitted.skip.gguf")
    make_random.make(plain, shape, seed=7)
    return fitted, plain


@pytest.fixture(scope="session")
def page_url(page_models: tuple[Path, Path]) -> Iterator[str]:
    """Where `pyskip serve` has its page for them."""
    from page import serve, stop

    server, url = serve(*map(str, page_models), "-c", "4096", "-t", "1")
    yield url
    stop(server)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    import browser

    if not (browser.CHROMIUM and browser.DRIVER):
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    with browser.open_browser() as chrome:
        yield chrome


@pytest.fixture
def page(browser: Any, page_url: str) -> Iterator[Any]:
    """The page as a visitor finds it; afterwards it has complained of nothing and asked nobody else."""
    from browser import complaints, requests, set_screen
    from page import Page

    set_screen(browser, 1100, 800)
    complaints(browser), requests(browser)
    page = Page(browser, page_url)
    page.until(lambda: page("#point").text)
    yield page
    assert complaints(browser) == []
    elsewhere = [r["url"] for r in [*page.asked, *requests(browser)] if not r["url"].startswith(page_url)]
    assert elsewhere == []
