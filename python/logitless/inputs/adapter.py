"""Low-rank adapters on a head: (A, B, scale), which add scale * (hidden A^T) B^T to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from logitless.inputs.arrays import check_dtype, check_shape, framework, shape_of
from logitless.inputs.checks import finite, is_tensor, shown
from logitless.inputs.weights import FLOATS


class Adapter(NamedTuple):
    A: Any  # [r, H]
    B: Any  # [V, r]
    scale: float


def check_adapters(
    op: str,
    given: Any,  # one (A, B, scale), a list of them, or None
    hidden: Any,  # [..., H]
    weight: Any,  # [V, H]
    local: Callable[[str, Any], Any] = lambda name, B: B,  # this rank's part of a B
) -> tuple[Adapter, ...]:
    """All of them, as one tuple; none for None."""
    if given is None:
        return ()
    several = isinstance(given, list)
    if several and not given:
        raise ValueError(
            f"{op}: adapter must be (A, B, scale) or a list of at least one, got []; None is none"
        )
    return tuple(
        _checked(op, f"adapter[{i}]" if several else "adapter", one, hidden, weight, local)
        for i, one in enumerate(given if several else [given])
    )


def _checked(
    op: str, name: str, given: Any, hidden: Any, weight: Any, local: Callable[[str, Any], Any]
) -> Adapter:
    if not isinstance(given, tuple) or len(given) != 3:
        many = f"a tuple of {len(given)}" if isinstance(given, tuple) else shown(given)
        raise TypeError(f"{op}: {name} must be a tuple (A, B, scale), got {many}")
    A, B, scale = given
    of_a, of_b = f"{name}'s A", f"{name}'s B"
    B = local(of_b, B)
    framework(op, hidden=hidden, **{of_a: A, of_b: B})
    (vocab, width), (rank, *rest) = shape_of(weight), (*shape_of(A), 0)[:3]
    if len(shape_of(A)) != 2 or rest[0] != width or not rank:
        raise ValueError(f"{op}: {of_a} must be [r, H] = [r, {width}], got {list(shape_of(A))}")
    check_shape(op, of_b, B, "[V, r]", (vocab, rank))
    check_dtype(op, of_a, A, *FLOATS)
    check_dtype(op, of_b, B, *FLOATS)
    return Adapter(A, B, finite(f"{name}'s scale", scale))


def adapter_kind(given: Any) -> Any:
    """What of adapters makes a kind of call; nothing is checked yet."""
    if isinstance(given, (tuple, list)):
        return tuple(adapter_kind(x) for x in given)
    return tuple(given.shape) if is_tensor(given) and not given.is_nested else given
