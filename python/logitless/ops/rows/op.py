"""torch op over given logits, [N, V] or [B, T, V]: a pass forward, a read and a write backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from logitless.backends import memory
from logitless.backends.row_errors import raise_found
from logitless.backends.rows import STATE, Rows
from logitless.inputs.make_tokens import thread_count
from logitless.inputs.scaling import scale_range
from logitless.ops.rows.outputs import as_float64, empty_outputs, requested
from logitless.ops.rows.overwrite import saved_as_given
from logitless.ops.sharding.shard import SHARD, Shard
from logitless.ops.torch_op import begin_backward, register

# The arguments every row op starts with, in the order of `make_rows`.
ROWS = (
    "Tensor targets, Tensor? mask, Tensor? bias, Tensor? row_scale, "
    "float scale, float pre, float softcap, str backend"
)
N_ROWS = 8
UPSTREAM = "Tensor? g_logp, Tensor? g_entropy, Tensor? g_lse"


def make_rows(
    targets: Tensor,  # [N] int64
    mask: Tensor | None,  # [N] bool
    bias: Tensor | None,  # [V]
    row_scale: Tensor | None,  # [N] float64
    scale: float,
    pre: float,
    softcap: float,
    backend: str,
    *,
    op: str = "token_stats",
) -> Rows:
    """The start of every row op's forward and backward: here bad rows of earlier calls surface."""
    if backend != "cpu":
        raise_found(targets.device)
        if row_scale is not None:
            # The host has not seen these values: a bad one makes NaN of its row, never a number.
            low, high = scale_range(pre, softcap)
            good = (low <= row_scale) & (row_scale <= high)
            row_scale = torch.where(good, row_scale, float("nan"))
    # torch exports no tensor that requires grad, and a kernel still sees its inputs as such.
    bias = None if bias is None else bias.detach()
    n, threads = len(targets), thread_count(targets)
    return Rows(n, targets, mask, row_scale, scale, bias, pre, softcap, threads, backend, op)


def _forward(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    extras, shard = args[N_ROWS], Shard(*args[N_ROWS + 2 :])
    rows, width = make_rows(*args[:N_ROWS]), logits.shape[-1]
    out = empty_outputs(rows.n, extras, logits)
    state = torch.empty(rows.n, STATE, dtype=torch.float64, device=logits.device)
    if width:
        shard.local(rows).forward(logits.detach(), state, extras=extras)
    else:
        empty_states(state)
    shard.merge(state, rows)
    rows.finish(state, shard.vocab(width), **requested(out, extras))
    return (*out.values(), state)


def _forward_fake(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    n, extras = args[0].shape[0], args[N_ROWS]
    state = logits.new_empty(n, STATE, dtype=torch.float64)
    return (*empty_outputs(n, extras, logits).values(), state)


def empty_states(state: Tensor) -> None:  # [n, STATE]
    """What `Rows.forward` leaves where there is no column: nothing seen, see csrc/core/rows.h."""
    state.zero_()
    state[:, 0], state[:, 6], state[:, 7] = -float("inf"), float("nan"), -1.0


def _write_gradient(logits: Tensor, gradient: Tensor, *args: Any) -> None:
    *row_args, state, g_logp, g_entropy, g_lse = args
    if not logits.shape[-1]:
        return
    make_rows(*row_args).backward(
        logits.detach(), state, gradient.detach(), g_logp=g_logp, g_entropy=g_entropy, g_lse=g_lse
    )


def _backward_kernel(logits: Tensor, *args: Any) -> Tensor:
    gradient = memory.contiguous_like(logits)
    _write_gradient(logits, gradient, *args)
    return gradient


_backward_op = register(
    f"row_stats_backward(Tensor logits, {ROWS}, Tensor state, {UPSTREAM}) -> Tensor",
    _backward_kernel,
    lambda logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
)
_backward_inplace_op = register(
    f"row_stats_backward_(Tensor(a!) logits, {ROWS}, Tensor state, {UPSTREAM}) -> ()",
    lambda logits, *args: _write_gradient(logits, logits, *args),
    lambda logits, *_: None,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, mask, bias, row_scale = inputs[:5]
    ctx.chain, (_, inplace, *shard) = inputs[5 : N_ROWS + 1], inputs[N_ROWS + 1 :]
    ctx.inplace = inplace and saved_as_given()
    ctx.start = Shard(*shard).start
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, mask, bias, row_scale, output[-1])


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    begin_backward(ctx, "token_stats", reuses_memory=ctx.inplace)
    logits, targets, mask, bias, row_scale, state = ctx.saved_tensors
    g = [as_float64(gradient) for gradient in upstream[:3]]
    # A shard's targets count from its first column.
    targets = targets - ctx.start if ctx.start else targets
    args = (logits, targets, mask, bias, row_scale, *ctx.chain, state, *g)
    # A traced graph has no versions, so in it nobody could object: it gets memory of its own.
    if ctx.inplace and memory.is_plain(logits):
        # As every op of torch that writes in place: whoever has saved these values, and has not
        # used them yet, raises instead of using the gradient.
        increment_version(logits)
        _backward_inplace_op(*args)
        gradient = logits.detach()
    else:
        gradient = _backward_op(*args)
    g_bias = gradient.flatten(0, -2).sum(0, dtype=bias.dtype) if ctx.needs_input_grad[3] else None
    return (gradient, None, None, g_bias, *[None] * 9)


row_stats = register(
    f"row_stats(Tensor logits, {ROWS}, bool extras, bool inplace, {SHARD})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
