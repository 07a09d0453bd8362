"""The one helper that registers torch.library ops from typed Python functions.

The parameters of an op's kernel are its arguments: tensors, numbers, text, or a NamedTuple of
those. The schema, the flat argument list that torch passes on, and the tuple that autograd wants of
a backward all follow from the annotations, so no index into an argument list is written anywhere.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import torch

from logitless.ops.torch_op.dispatch import (
    autocast,
    backend_of,
    backend_with,
    differentiated,
    reaches_kernel,
    recorded,
    tracked,
    without_autocast,
)
from logitless.ops.torch_op.layout import Layout, Symbol, Symbols, Written, WrittenList
from logitless.ops.torch_op.node import Autograd, Needs, graph_is_kept, node

__all__ = [
    "Autograd", "Needs", "Symbol", "Symbols", "Written", "WrittenList", "autocast", "backend_of",
    "backend_with",
    "graph_is_kept", "register",
]  # fmt: skip

_LIBRARY = torch.library.Library("logitless", "FRAGMENT")


def register(
    name: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    autograd: Autograd | None = None,
) -> Callable[..., Any]:
    """Define `logitless::<name>` with the signature of `kernel`; the returned op is called alike.

    `kernel` returns a tensor, a NamedTuple of tensors, or None; one kernel serves CPU and CUDA
    tensors. `fake` has the same parameters and gives results without values.

    A differentiable op writes to none of its arguments, and plain CPU tensors that nobody traces
    reach its kernel without the dispatcher, which takes longer than the kernel of a tiny call
    (`./dev bench overhead`).
    """
    hints = typing.get_type_hints(kernel, include_extras=True)
    results = hints.pop("return", type(None))
    arguments, outputs = Layout(hints), Layout.of_results(results)
    _LIBRARY.define(f"{name}({arguments.schema}) -> {outputs.returns}")

    def flat(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return outputs.flattened(function(*arguments.packed(args)))

        return call

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, flat(kernel), key)
    torch.library.register_fake(f"logitless::{name}", flat(fake), lib=_LIBRARY)
    overload: Any = getattr(torch.ops.logitless, name).default
    own: Any = None if autograd is None else node(name, autograd, arguments, outputs)
    if own is not None:
        key_function = differentiated(overload, own, arguments, outputs)
        _LIBRARY.impl(name, key_function, "Autograd", with_keyset=True)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, without_autocast(overload, device), f"Autocast{device}")

    def op(*args: Any) -> Any:
        values = arguments.flat(args)
        if own is None or not reaches_kernel(values):
            return outputs.result(overload(*values))
        places = tracked(values)
        if not places:
            return kernel(*args)
        return outputs.result(recorded(own, lambda: kernel(*args), args, places, values))

    op.__name__ = name
    op.overload, op.flat = overload, arguments.flat  # type: ignore[attr-defined]
    return op
