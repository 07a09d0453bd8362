"""Per-token statistics of a head call whose arguments are checked: the road that the public
functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from logitless.inputs.options import DROPPED, LogitTransform
from logitless.ops.head.backward import counted
from logitless.ops.head.inputs import HeadInputs
from logitless.ops.head.planner.plan import Plan
from logitless.ops.head.stats_op import linear_stats
from logitless.ops.rows.outputs import TokenStats, split_extras, to_stats, with_nothing_dropped
from logitless.ops.rows.selected import with_selected, with_selected_of_ranks
from logitless.ops.sharding.rendezvous import Facts

if TYPE_CHECKING:
    from torch import Tensor


def extras_facts(extras: tuple[str, ...]) -> Facts:
    """What of the extras must be the same on every rank."""
    rows, dropped = split_extras(extras)
    return (
        ("whether there are extras", bool(rows)),
        ("whether there are extras of what is dropped", bool(dropped)),
    )


def selected(
    op: str,
    stats: TokenStats,
    inputs: HeadInputs,
    hidden: Tensor,  # in the caller's shape, and so the mask
    weight: Tensor,
    ids: Tensor | None,  # [K]; None: nothing is asked for
    mask: Tensor | None,
    head: LogitTransform,
) -> TokenStats:
    """With the log-probs of these ids, as differentiable as `stats.lse` and hidden are."""
    if ids is None:
        return stats
    columns = _few_columns(inputs, hidden, weight, mask, stats.lse.shape)
    if not inputs.shard.group:
        return with_selected(stats, columns(ids), ids, mask, head)
    width = int(weight.shape[0])
    return with_selected_of_ranks(op, stats, columns, ids, mask, head, width, inputs.shard)


def _few_columns(
    inputs: HeadInputs, hidden: Tensor, weight: Tensor, mask: Tensor | None, shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """The logits of ids among the rows of weight, in their dtype and in plain torch. With ranks the
    gradient of hidden is the sum of theirs."""
    dtype, operands = inputs.logits_dtype, [(hidden, weight)]
    if inputs.adapter is not None:
        low, up = inputs.adapter
        operands.append((low.reshape(*shape, low.shape[1]), up))
    if inputs.shard.group:
        from logitless.ops.sharding.few import padded, shared

        operands = [(shared(x, inputs.shard), padded(rows, 0)) for x, rows in operands]

    def columns(ids: Tensor) -> Tensor:
        found = [_product(x, rows.index_select(0, ids), mask, dtype) for x, rows in operands]
        return found[0] if len(found) == 1 else found[0] + found[1]

    return columns


def _product(hidden: Tensor, rows: Tensor, mask: Tensor | None, dtype: Any) -> Tensor:
    import torch

    hidden = hidden if mask is None else hidden.masked_fill(~mask[..., None], 0.0)
    with torch.autocast(hidden.device.type, enabled=False):
        return hidden.to(dtype) @ rows.to(dtype).t()


def statistics(
    inputs: HeadInputs,
    shape: tuple[int, ...],
    extras: tuple[str, ...] = (),
    *,
    plan: Plan | str | None = None,
) -> TokenStats:
    """With gradients by autograd where hidden, weight or bias need some. `plan`: one that is made
    already, of forward and backward apart."""
    of_rows, of_dropped = split_extras(extras)
    eager = inputs.backend.statistics
    if eager is not None:
        stats = to_stats(eager(inputs.full_logits(), *inputs.rows[:-1]), shape, of_rows)
        return with_nothing_dropped(stats, extras)
    if not (any(inputs.needs) or of_dropped):
        inputs = inputs.exact()
    tail = inputs.compute.tail
    tiling = inputs.tiling(inputs.plan(one_pass=False) if plan is None else plan)
    places = inputs.places
    if places is None:
        places = counted(inputs.rows.mask, tiling, inputs.backend)
    out = linear_stats(
        inputs.operand, inputs.weight, inputs.rows, bool(of_rows), tail, tiling, inputs.shard,
        inputs.up, places,
    )  # fmt: skip
    stats = to_stats(out.outputs._asdict(), shape, of_rows)
    if not tail.mass:
        return with_nothing_dropped(stats, extras)
    both = {name: getattr(out, name).reshape(shape) for name in DROPPED}
    return stats._replace(extras={name: (both | stats.extras)[name] for name in extras})
