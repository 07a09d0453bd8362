"""The oracle and the tolerances without the package around them, which needs a compiled core."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
REFERENCE = TESTS.parent / "python" / "logitless" / "reference"


@functools.cache
def _load(name: str, path: Path) -> Any:
    """One file of Python by itself."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # where those that import it look first
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def oracle(name: str) -> Any:
    """A file of logitless.reference, of which some import that of the rows."""
    if name != "rows":
        oracle("rows")
    return _load(f"logitless.reference.{name}", REFERENCE / f"{name}.py")


tolerances = _load("tolerances", TESTS / "support" / "tolerances.py")
