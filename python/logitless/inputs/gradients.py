"""What is data may not require a gradient, and what a graph of torch.compile does not know."""

from __future__ import annotations

import sys

from logitless.inputs.checks import is_tensor
from logitless.inputs.tokens import Array


def is_traced(x: object) -> bool:
    """Whether x is a tensor in a graph that torch.compile traces, whose values nobody knows."""
    return is_tensor(x) and sys.modules["torch"].compiler.is_compiling()


def refuse_grad(**data: Array | None) -> None:
    """What is data may not require a gradient: none would ever flow into it."""
    for name, x in data.items():
        if x is not None and is_tensor(x) and x.requires_grad:
            raise ValueError(
                f"{name} is data and gets no gradient, got a tensor with requires_grad=True; "
                f"pass {name}.detach()"
            )
