"""What a recipe names of a user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

# Frames in here are the library's, not the user's.
PACKAGE = f"{Path(__file__).parents[2]}{os.sep}"
IMPORTLIB = ("<frozen importlib", str(importlib.__file__))


class UserCodeError(RuntimeError):
    """A user's own code has raised the cause; the message says where it was called from."""

    def users_traceback(self) -> str:
        """That of the cause, from the first line of the user's; empty where it has none."""
        if self.__cause__ is None:
            return ""
        place = self.__cause__.__traceback__
        while place is not None and not _is_users(place):
            place = place.tb_next
        # a mistake of grammar is in a file that has not run a line
        if place is None and not isinstance(self.__cause__, SyntaxError):
            return ""
        return "".join(traceback.format_exception(self.__cause__.with_traceback(place)))


@contextmanager
def of_user(what: str) -> Iterator[None]:
    """A user's code runs in here: its errors are UserCodeErrors. What the library itself raises
    stays, as does a call that does not fit the function it calls."""
    try:
        yield
    # sys.exit in a module is no way to end a run
    except (Exception, SystemExit) as error:
        *_, last = traceback.walk_tb(error.__traceback__)
        if last[0].f_code.co_filename.startswith(PACKAGE):
            raise
        raise UserCodeError(f"{what} has failed: {type(error).__name__}: {error}") from error


def _is_users(place: TracebackType) -> bool:
    return not place.tb_frame.f_code.co_filename.startswith((PACKAGE, *IMPORTLIB))


def named(what: str, name: str) -> Any:
    """What "module:attribute" or "folder/file.py:attribute" names; the current folder's modules
    are found too. `what` is for errors: the recipe's key.

    ValueError where it names nothing; UserCodeError where the user's code raises something while it
    is loaded.
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
    try:
        with of_user(f"importing {module}"):
            return importlib.import_module(module)
    except UserCodeError as error:
        cause = error.__cause__
        absent = cause.name if isinstance(cause, ModuleNotFoundError) else None
        # the module itself, or a package that it would be in
        if absent is not None and f"{module}.".startswith(f"{absent}."):
            raise cause from None  # type: ignore[misc]
        raise


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
    try:
        with of_user(f"importing {path.name}"):
            spec.loader.exec_module(module)
    except BaseException:
        # half of a module is none
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise
    return module
