"""What `import pyskip` offers is what __all__ says, and is typed."""

from importlib.metadata import version
from importlib.resources import files

import pyskip


def test_all_is_there() -> None:
    for name in pyskip.__all__:
        assert getattr(pyskip, name) is not None
    assert set(pyskip.__all__) <= set(dir(pyskip))


def test_nothing_else_is_public() -> None:
    import types

    public = {n for n, v in vars(pyskip).items() if not n.startswith("_") and not isinstance(v, types.ModuleType)}
    assert public - {"annotations", "TYPE_CHECKING", "Any", "suppress"} <= set(pyskip.__all__)


def test_unknown_name() -> None:
    assert not hasattr(pyskip, "no_such_name")


def test_typed_and_versioned() -> None:
    assert files("pyskip").joinpath("py.typed").is_file()
    assert pyskip.__version__ == version("pyskip")
