"""What the head's public functions ask of their arrays, checked once."""

from __future__ import annotations

from typing import Any

from logitless.inputs.arrays import check_tokens, check_weight, framework
from logitless.inputs.checks import is_tensor
from logitless.inputs.options import LogitTransform
from logitless.inputs.weights import refuse_special_weight


def under_autocast(hidden: Any, weight: Any) -> tuple[Any, Any]:
    if not (is_tensor(hidden) and is_tensor(weight)):
        return hidden, weight
    from logitless.ops.torch_op import autocast

    return autocast(hidden, weight)


def check_head_arrays(
    op: str,
    hidden: Any,
    weight: Any,
    targets: Any,
    mask: Any,
    head: LogitTransform,
    *,
    sharded: bool = False,
    of_rows: dict[str, Any] | None = None,
    anywhere: dict[str, Any] | None = None,
) -> tuple[int, ...]:
    """The shape of targets. `of_rows`: arrays that are checked elsewhere, but for their framework
    and device; `anywhere`: the same on any device."""
    optional = {"mask": mask, **head.arrays, **(of_rows or {})}
    framework(op, optional, anywhere=anywhere, hidden=hidden, weight=weight, targets=targets)
    if is_tensor(weight):
        refuse_special_weight(op, weight, sharded=sharded)
    vocab = check_weight(op, hidden, weight)
    return check_tokens(op, "hidden", hidden, targets, mask, head, vocab, sharded=sharded)
