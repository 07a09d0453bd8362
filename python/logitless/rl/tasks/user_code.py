"""What a recipe names of a user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def named(what: str, name: str) -> Any:
    """What "module:attribute" or "folder/file.py:attribute" names; the current folder's modules
    are found too. `what` is for errors: the recipe's key.

    ValueError where it names nothing; whatever the user's code raises while it is loaded comes
    through.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"{what} must be 'module:name' or 'file.py:name', got {name[:200]!r}")
    home = _from_file(what, Path(module)) if module.endswith(".py") else _imported(module)
    if not hasattr(home, attribute):
        raise ValueError(f"{what} '{name}' names nothing in {module}")
    return getattr(home, attribute)


def _imported(module: str) -> Any:
    # at the end, so that nothing of the folder hides what is installed
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(module)


def _from_file(what: str, path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no such file: {path}")
    path = path.resolve()
    # its own imports may be of files beside it
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
