"""Whose error it is: a public op's ValueErrors and TypeErrors start with its name."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_STARTS: list[str] = []


def public(op: Callable[P, R]) -> Callable[P, R]:
    """The op, its name before what it refuses; where one calls another, the caller's name."""
    start = f"{op.__name__}: "
    _STARTS.append(start)

    @functools.wraps(op)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            return op(*args, **options)
        except (ValueError, TypeError) as error:
            # torch.compile shows the line of ours that raised, and cannot rename.
            if not _traced():
                error.args = (_named(start, str(error)),)
            raise

    return call


_TEACHERS = re.compile(r"\b(hidden|weight|logits|temperature|softcap|logit_scale|bias)\b")


@contextmanager
def of_teacher() -> Iterator[None]:
    """What is refused in here is about a teacher's arguments, whose names start with that word."""
    try:
        yield
    except (ValueError, TypeError) as error:
        error.args = (_TEACHERS.sub(r"teacher_\1", str(error)),)
        raise


def _traced() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def _named(start: str, text: str) -> str:
    # of a call that Python itself refuses: "token_stats() missing 1 required ..."
    if text.startswith(start.removesuffix(": ")):
        return text
    for other in _STARTS:
        text = text.removeprefix(other)
    return start + text
