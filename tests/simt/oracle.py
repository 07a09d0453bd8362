"""The oracle and the tolerances without the package around them, which needs a compiled core."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "python" / "logitless"


@functools.cache
def oracle(name: str) -> Any:
    """A file of logitless.reference."""
    with _bare_packages():
        return importlib.import_module(f"logitless.reference.{name}")


@contextmanager
def _bare_packages() -> Iterator[None]:
    """Files of the package are found by its folders, and no __init__ runs."""

    def taken() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if f"{name}.".startswith("logitless.")]
        return {name: sys.modules.pop(name) for name in names}

    before = taken()
    for name, folder in (("logitless", PACKAGE), ("logitless.reference", PACKAGE / "reference")):
        bare = ModuleType(name)
        bare.__path__ = [str(folder)]
        sys.modules[name] = bare
    try:
        yield
    finally:
        taken()
        sys.modules.update(before)


def _file(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tolerances = _file("tolerances", TESTS / "support" / "tolerances.py")
