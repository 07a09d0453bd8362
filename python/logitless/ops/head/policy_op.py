"""torch op of the policy loss straight from hidden x weight, its gradients made in the forward.

A chunk of rows at a time: all logits of the chunk, their statistics, the loss's coefficients, and
the rows that have any go back through the same logits: three products, and nothing is kept. Where
the vocabulary is sharded, a chunk's states are gathered once and its d_hidden added up once. The
backward scales what the forward made by the gradient of the loss.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.rows import STATE
from logitless.inputs.make_tokens import make_tokens
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.head.engine import Gradients, Upstream, fold, unfold
from logitless.ops.head.late_plan import answer, planned
from logitless.ops.head.tiling import TILES, Sum, Tiles
from logitless.ops.losses.op import (
    LOSS,
    LossArguments,
    coefficients,
    loss_and_metrics,
    loss_and_metrics_fake,
)
from logitless.ops.losses.spec_code import decode
from logitless.ops.rows.op import N_ROWS, ROWS, make_rows
from logitless.ops.rows.outputs import empty_outputs, requested
from logitless.ops.sharding.shard import LATE, SHARD, Shard, sum_dtype, tiling_of
from logitless.ops.torch_op import begin_backward, register

LOSS_ARGUMENTS = len(LossArguments._fields)
# float16 tiles of d(logits) would lose what is below 6e-8, and a loss's coefficients are about
# 1 / tokens: they are multiplied by a power of two that brings the largest to this.
LARGEST_FLOAT16 = 2.0**-4


def separable(spec: PolicyLossSpec, *, batch: bool) -> bool:
    """Whether a token's coefficients follow from its own logp and what is known before."""
    selects = spec.control is not None and spec.control.selects
    if spec.whole_sequences or (spec.needs_means and not batch):
        return False
    return not selects or (spec.selects and batch)


class _Arguments(NamedTuple):
    rows: tuple[Any, ...]
    loss: LossArguments
    chunk: int
    needs: tuple[bool, bool, bool]
    tiles: Tiles
    shard: Shard

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> _Arguments:
        rows, rest = args[:N_ROWS], args[N_ROWS:]
        loss, (chunk, needs, *tiling) = rest[:LOSS_ARGUMENTS], rest[LOSS_ARGUMENTS:]
        return cls(rows, LossArguments(*loss), chunk, needs, *tiling_of(tuple(tiling)))

    def planned(self, hidden: Tensor, weight: Tensor) -> _Arguments:
        """With the chunk and tiles to compute with. Where a graph of any length has come to a
        length for which one pass is not the plan, all rows are one chunk, and what logits are not
        kept is made again."""
        tiles, chunk, kept = self.tiles, self.chunk, len(weight)
        if tiles.plan:
            found, tiles = answer(tiles, hidden, weight), planned(tiles, hidden, weight)
            if not found.chunk_rows:
                kept = tiles.kept
            chunk = found.chunk_rows or len(hidden)
        return self._replace(chunk=chunk, tiles=tiles._replace(kept=kept))


def _empty_gradients(hidden: Tensor, weight: Tensor, a: _Arguments) -> list[Tensor]:
    """Memory for d_hidden, d_weight, d_bias; what is not rounded yet, for it is not complete, is
    float32. A graph of any length has d_weight in one dtype, and rounds it when it is complete."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    unscaled = wide if hidden.dtype == torch.float16 else hidden.dtype
    summed = unscaled if a.tiles.plan or a.chunk >= len(hidden) else wide
    sizes = (hidden.shape, weight.shape, (len(weight),))
    dtypes = (unscaled, summed, wide)
    return [
        memory.buffer(math.prod(size), dtype, hidden).view(size)
        if need
        else hidden.new_empty(0, dtype=dtype)
        for size, dtype, need in zip(sizes, dtypes, a.needs, strict=True)
    ]


def _forward(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    hidden, weight = hidden.detach(), weight.detach()
    given = _Arguments.of(args)
    a = given.planned(hidden, weight)
    tiles = a.tiles
    rows, shape = make_rows(*a.rows, op="linear_policy_loss"), a.loss.mask.shape
    names = a.loss.metric_names(entropy=True)
    index = a.loss.mask.reshape(-1).nonzero().squeeze(1)
    rows = rows.gather(index)
    logp, entropy = first_values(hidden, a.loss)
    gradients = _empty_gradients(hidden, weight, a)
    gradients[0].zero_()
    gradients[2].zero_()
    h = tiles.operand(hidden, index)
    held = min(a.chunk, rows.n)
    kept = memory.buffer(tiles.padded(held) * tiles.kept, tiles.dtype, hidden)
    state = hidden.new_empty(held, STATE, dtype=torch.float64)
    result, started = None, False
    for start in range(0, rows.n, max(a.chunk, 1)):
        chunk = slice(start, min(start + a.chunk, rows.n))
        part, ids, operand = rows.part(chunk), index[chunk], h[tiles.height(chunk)]
        local, folded = a.shard.local(part), state[: part.n]
        fold(operand, weight, local, folded, tiles, kept, False)
        a.shard.merge(folded, part)
        out = empty_outputs(part.n, False, hidden)
        part.finish(folded, a.shard.vocab(len(weight)), row_ids=ids, **requested(out, False))
        logp[ids], entropy[ids] = out["logp"], out["entropy"]
        # Of all rows, for no formula is written twice: a few us per thousand tokens. Those of this
        # chunk are right, and after the last chunk so is the loss.
        _, result = coefficients(logp.view(shape), entropy.view(shape), a.loss)
        g = Upstream(*(None if x is None else torch.from_numpy(x).to(ids.device)[ids].double()
                       for x in (result.g_logp, result.g_entropy)))  # fmt: skip
        started |= _add_chunk(
            operand, weight, local, state, g, tiles, kept, ids, gradients, a.needs, started,
            whole=chunk.stop - chunk.start == rows.n, shard=a.shard,
        )  # fmt: skip
    if result is None:
        _, result = coefficients(logp.view(shape), entropy.view(shape), a.loss)
    if not started:
        gradients[1].zero_()
    if given.tiles.plan:
        gradients[1] = gradients[1].to(gradients[0].dtype)
    return (
        *loss_and_metrics(result, names, logp),
        logp.view(shape),
        entropy.view(shape),
        *gradients,
    )


def first_values(hidden: Tensor, loss: LossArguments) -> tuple[Tensor, Tensor]:
    """Memory for logp and entropy. Where the mask is true, finite numbers for rows still to come:
    logp is that of the old policy. Raises for whatever is wrong with the loss's shapes and dtypes.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    entropy = hidden.new_zeros(loss.mask.shape, dtype=wide)
    make_tokens(
        entropy, loss.advantages, loss.mask, old_logp=loss.old_logp, ref_logp=loss.ref_logp,
        rollout_logp=loss.rollout_logp,
        cu_seqlens=loss.cu_seqlens, token_ids=loss.token_ids,
    )  # fmt: skip
    # of the policy that the ratio divides by: its ratios are 1
    inference = decode(loss.spec).ratio == "inference"
    near = loss.rollout_logp if inference else loss.old_logp
    logp = entropy.clone()
    if near is not None:
        logp = torch.where(loss.mask, near.to(wide), entropy)
    return logp.view(-1), entropy.view(-1)


def _add_chunk(
    operand: Tensor,
    weight: Tensor,
    rows: Any,
    state: Tensor,
    g: Upstream,
    tiles: Tiles,
    kept: Tensor,
    ids: Tensor,  # of the chunk's rows among all
    gradients: list[Tensor],
    needs: tuple[bool, bool, bool],
    started: bool,
    *,
    whole: bool,
    shard: Shard,
) -> bool:
    """Add a chunk's share to the gradients; False where none of its rows has any."""
    active = g.active(rows.targets)
    if len(active) == 0:
        return False
    everything = len(active) == rows.n
    padded = tiles.padded(len(active))
    chosen = Upstream(**g.at(active))
    scale = power_of_two(chosen) if tiles.dtype == torch.float16 else 1.0
    d_hidden, d_weight, d_bias = gradients
    dtype = sum_dtype(shard, d_hidden.dtype)
    mine = d_hidden.new_empty(padded, operand.shape[1], dtype=dtype) if needs[0] else None
    unfold(
        operand if everything else tiles.operand(operand, active),
        weight,
        rows if everything else rows.gather(active),
        state[: rows.n] if everything else state[active],
        Upstream(*(None if x is None else x * scale for x in chosen)),
        tiles,
        kept,
        None if everything else active,
        rows.n,
        Gradients(
            mine,
            (lambda a, b, parts: Sum(d_weight[a:b], single=whole and parts == 1,
                                     started=started, alpha=1 / scale))
            if needs[1] else None,
            d_bias if needs[2] else None,
            1 / scale,
        ),
    )  # fmt: skip
    if mine is not None:
        own = mine[: len(active)]
        shard.reduce(own)
        d_hidden.index_copy_(0, ids[active], own.to(d_hidden.dtype))
    return True


def power_of_two(g: Upstream) -> float:
    largest = max(float(x.abs().max()) for x in g if x is not None)
    return float(2.0 ** -math.ceil(math.log2(largest / LARGEST_FLOAT16)))


def _forward_fake(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = _Arguments.of(args)
    names = a.loss.metric_names(entropy=True)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = (hidden.new_empty(a.loss.mask.shape, dtype=wide) for _ in range(2))
    scalars = loss_and_metrics_fake(names, hidden)
    return (*scalars, *values, *_empty_gradients(hidden, weight, a))


def _scale(gradients: list[Tensor], by: Tensor) -> None:
    factor = by.item()
    if factor != 1.0:
        for gradient in gradients:
            # a Python number multiplies in float32, whatever the tensor stores
            gradient.mul_(factor)


_scale_op = register(
    "scale_gradients_(Tensor(a!)[] gradients, Tensor by) -> ()", _scale, lambda *_: None
)


def setup_scaling(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # or autograd would hand zeros the size of the head to a backward that ignores them
    ctx.set_materialize_grads(False)
    ctx.dtypes = (inputs[0].dtype, inputs[1].dtype)
    ctx.needs = inputs[2 + N_ROWS + LOSS_ARGUMENTS + 1]
    ctx.inputs = len(inputs)
    ctx.save_for_backward(*output[-3:])


def scale_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    begin_backward(ctx, "linear_policy_loss", reuses_memory=True)
    if grad is None:
        return tuple([None] * ctx.inputs)
    gradients = list(ctx.saved_tensors)
    _scale_op(gradients, grad)
    dtypes = (*ctx.dtypes, gradients[2].dtype)
    d_hidden, d_weight, d_bias = (
        x.to(dtype) if need else None
        for x, dtype, need in zip(gradients, dtypes, ctx.needs, strict=True)
    )
    return (d_hidden, d_weight, None, None, d_bias, *[None] * (ctx.inputs - 5))


one_pass = register(
    f"linear_policy_loss(Tensor hidden, Tensor weight, {ROWS}, {LOSS}, int chunk_rows, "
    f"bool[] needs, {TILES}, {SHARD}, {LATE}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=setup_scaling,
    backward=scale_backward,
)
