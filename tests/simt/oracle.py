"""The oracle and the tolerances without the package around them, which needs a compiled core."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
REFERENCE = TESTS.parent / "python" / "logitless" / "reference"


def load(name: str, path: Path) -> Any:
    """One file of Python by itself."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load("reference", REFERENCE / "rows.py")
# what the next one imports
sys.modules["logitless.reference.rows"] = reference
pairs = load("pairs", REFERENCE / "divergence.py")
del sys.modules["logitless.reference.rows"]
tolerances = load("tolerances", TESTS / "support" / "tolerances.py")
