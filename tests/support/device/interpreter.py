"""Triton's interpreter replaces words of triton.language once, not again in every call."""

from __future__ import annotations

from typing import Any

import pytest


def patch_once() -> None:
    """In this process, which compiles no kernel.

    Before each kernel, and each function that a kernel calls, the interpreter looks through all of
    triton.language for what to replace: that is half of its time. The words of a module stay
    replaced here, where it takes them back after a kernel.
    """
    from triton.runtime import interpreter

    patch, known = interpreter._patch_lang, set()

    def once(fn: Any) -> Any:
        module = fn.__globals__["__name__"]
        if module in known:
            return scope()
        known.add(module)
        patch(fn)
        return scope()

    scope = type("Nothing", (), {"restore": lambda self: None})
    interpreter._patch_lang = once


def programs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of a kernel run in no order on a GPU: here the last one comes first."""
    from triton.runtime.interpreter import interpreter_builder as builder

    place = builder.set_grid_idx

    def backwards(x: int, y: int, z: int) -> None:
        place(builder.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(builder, "set_grid_idx", backwards)
