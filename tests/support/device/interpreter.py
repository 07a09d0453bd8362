"""Triton's interpreter replaces words of triton.language once, not again in every call."""

from __future__ import annotations

from typing import Any


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
