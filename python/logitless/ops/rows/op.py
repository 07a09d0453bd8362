"""torch op over given logits, [N, V] or [B, T, V]: a pass forward, a read and a write backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from logitless.backends import memory
from logitless.backends.row_kernels.rows import STATE
from logitless.ops.rows.arguments import DIFFERENTIATED, RowArguments, RowGradients, RowOutputs
from logitless.ops.rows.outputs import empty_outputs, requested
from logitless.ops.rows.overwrite import saved_as_given
from logitless.ops.sharding.shard import Shard
from logitless.ops.torch_op import Autograd, Needs, Written, register

OP = "token_stats"


class RowStats(NamedTuple):
    outputs: RowOutputs
    state: Tensor  # [n, STATE] float64


class _Arguments(NamedTuple):
    logits: Tensor
    rows: RowArguments
    extras: bool
    inplace: bool
    shard: Shard


class _Saved(NamedTuple):
    logits: Tensor
    rows: RowArguments
    state: Tensor
    inplace: bool
    start: int  # of this rank's columns


def _forward(
    logits: Tensor, rows: RowArguments, extras: bool, inplace: bool, shard: Shard
) -> RowStats:
    of_all, width = rows.rows(OP), logits.shape[-1]
    out = empty_outputs(of_all.n, extras, logits)
    state = torch.empty(of_all.n, STATE, dtype=torch.float64, device=logits.device)
    if width:
        shard.local(of_all).forward(logits.detach(), state, extras=extras)
    else:
        empty_states(state)
    shard.merge(state, of_all)
    of_all.finalize(state, shard.vocab(width), **requested(out, extras))
    return RowStats(RowOutputs(**out), state)


def _forward_fake(
    logits: Tensor, rows: RowArguments, extras: bool, inplace: bool, shard: Shard
) -> RowStats:
    n = rows.targets.shape[0]
    state = logits.new_empty(n, STATE, dtype=torch.float64)
    return RowStats(RowOutputs(**empty_outputs(n, extras, logits)), state)


def empty_states(state: Tensor) -> None:  # [n, STATE]
    """What `Rows.forward` leaves where there is no column: see csrc/core/row_state.h."""
    state.zero_()
    for place, value in ((0, -float("inf")), (6, float("nan")), (7, -1.0)):
        state[:, place].fill_(value)


def _write_gradient(
    logits: Tensor, out: Tensor, rows: RowArguments, state: Tensor, g: RowGradients
) -> None:
    if logits.shape[-1]:
        rows.rows(OP).gradient(logits.detach(), state, out.detach(), **g.kernel_arguments)


def _backward_kernel(logits: Tensor, rows: RowArguments, state: Tensor, g: RowGradients) -> Tensor:
    gradient = memory.contiguous_like(logits)
    _write_gradient(logits, gradient, rows, state, g)
    return gradient


def _backward_inplace(logits: Written, rows: RowArguments, state: Tensor, g: RowGradients) -> None:
    _write_gradient(logits, logits, rows, state, g)


_backward_op = register(
    "row_stats_backward",
    _backward_kernel,
    lambda logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
)
_backward_inplace_op = register("row_stats_backward_", _backward_inplace, lambda *_: None)


def _save(given: _Arguments, out: RowStats) -> _Saved:
    inplace = given.inplace and saved_as_given()
    return _Saved(given.logits, given.rows, out.state, inplace, given.shard.start)


def _backward(saved: _Saved, upstream: RowStats, needs: Needs) -> dict[str, Tensor | None]:
    logits, rows = saved.logits, saved.rows
    # A shard's targets count from its first column.
    if saved.start:
        rows = rows._replace(targets=rows.targets - saved.start)
    g = RowGradients.of(*upstream.outputs[:3])
    # A traced graph has no versions, so in it nobody could object: it gets memory of its own.
    if saved.inplace and memory.is_plain(logits):
        # As every op of torch that writes in place: whoever has saved these values, and has not
        # used them yet, raises instead of using the gradient.
        increment_version(logits)
        _backward_inplace_op(logits, rows, saved.state, g)
        gradient = logits.detach()
    else:
        gradient = _backward_op(logits, rows, saved.state, g)
    found: dict[str, Tensor | None] = {"logits": gradient}
    if needs("rows.bias"):
        assert rows.bias is not None
        found["rows.bias"] = gradient.flatten(0, -2).sum(0, dtype=rows.bias.dtype)
    return found


row_stats = register(
    "row_stats",
    _forward,
    _forward_fake,
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: saved.inplace),
)
