"""docs/compatibility.md says of every argument of llama_cpp.Llama what becomes of it here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import compatibility
import pytest

import pyskip

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [(member, argument) for member, arguments in compatibility.members().items() for argument in arguments]


@pytest.mark.parametrize(("member", "argument"), PAIRS)
def test_every_argument_has_a_place(member: str, argument: str) -> None:
    assert compatibility.place(member, argument)[0] in {"works", "warns", "refuses", "does nothing", "differs"}


def test_every_member_has_a_place() -> None:
    assert compatibility.MEMBERS.keys() == compatibility.members().keys() - {"__init__"}


def test_nothing_has_a_place_that_is_gone() -> None:
    found = compatibility.members()
    assert compatibility.LOADING.keys() == set(found.pop("__init__"))
    assert compatibility.COMMON.keys() <= {argument for arguments in found.values() for argument in arguments}


def test_the_page_is_this() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    assert page == compatibility.page(), "make compatibility"


def test_a_new_argument_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    def eval(self: Any, tokens: Any, brand_new: int = 0) -> None: ...

    monkeypatch.setattr(llama_cpp.Llama, "eval", eval)
    assert "brand_new" in compatibility.members()["eval"]
    with pytest.raises(KeyError, match="brand_new"):
        compatibility.page()


@pytest.mark.parametrize(("member", "argument"), [pair for pair in PAIRS if pair[0] != "__init__"])
def test_pyskip_takes_it(member: str, argument: str) -> None:
    parameters = inspect.signature(getattr(pyskip.Llama, member)).parameters
    assert argument in parameters or {"args", "kwargs"} & parameters.keys()
