"""linear_sample where every rank holds some of the vocabulary: the token that one rank would draw.

A block of the vocabulary is scored and drawn in by the rank that holds its first column. Shards do
not end where blocks do, so each rank also makes the logits from its start to the next block's for
the rank before it: at most 2047 columns. Then everyone has the best score, its token and the merged
state by one exchange.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from logitless.ops.options import HeadOptions
from logitless.ops.outputs import DIFFERENTIABLE, empty_outputs, flat_head
from logitless.ops.plan import plan
from logitless.ops.row_op import empty_states
from logitless.ops.rows import BLOCK, SAMPLE_STATE, STATE, Rows
from logitless.ops.shard import Shard
from logitless.ops.tiles import Tiles


def draw_sharded(
    op: str,
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V of this rank, H]
    head: HeadOptions,
    seed: int,
    step: int,
    row_ids: Tensor,  # [n]
    shard: Shard,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token, and logp and entropy, of every row; the same on every rank."""
    n, vocab, start, stop = len(hidden), shard.vocab(0), shard.start, shard.start + len(weight)
    bias, row_scale, scale, pre, cap = flat_head(
        op, head, (n,), None, hidden.dtype == torch.float64
    )
    bias = None if bias is None else _whole_bias(bias.detach(), shard)
    rows = Rows(n, None, None, row_scale, scale, bias, pre, cap, torch.get_num_threads())
    state = hidden.new_empty(n, STATE, dtype=torch.float64)
    best = hidden.new_empty(n, SAMPLE_STATE, dtype=torch.float64)
    empty_states(state)
    best[:, 0], best[:, 1] = -float("inf"), -1.0

    def sample(chunk: slice, tile: Tensor, first: int) -> None:
        rows.part(chunk).sample(
            tile, state[chunk], best[chunk], row_ids=row_ids[chunk], seed=seed, step=step,
            start=first, first=False,
        )  # fmt: skip

    tiling = plan(n, hidden.shape[1], shard.widest(0), hidden.dtype, backward=False)
    tiles = Tiles(tiling.rows, tiling.columns, 0, hidden.dtype, 0)
    scratch = tiles.scratch(n, hidden)
    leads = _leads(hidden, weight, shard)
    begin = start + _lead(start, stop)
    # The last block is whole without others' columns only at the end of the vocabulary.
    end = stop if stop == vocab else max(stop // BLOCK * BLOCK, begin)
    for first in range(begin, end, tiles.columns):
        w = weight[first - start : min(first + tiles.columns, end) - start]
        for chunk in tiles.chunks(n):
            operand = hidden[chunk]
            tile = scratch[: len(operand) * len(w)].view(len(operand), len(w))
            torch.mm(operand, w.t(), out=tile)
            sample(chunk, tile, first)
    if end < stop:
        parts = [hidden @ weight[end - start :].t()]
        parts += [lead for first, lead in leads if stop <= first < end + BLOCK]
        sample(slice(0, n), torch.cat(parts, 1), end)
    return _best_of_all(rows, state, best, shard, hidden)


def _lead(start: int, stop: int) -> int:
    """How many of a shard's first columns belong to a block that starts before it."""
    return min(stop, -(-start // BLOCK) * BLOCK) - start


def _leads(hidden: Tensor, weight: Tensor, shard: Shard) -> list[tuple[int, Tensor]]:
    """(first column, logits) of every rank's lead, in the order of columns."""
    widths = [_lead(*ends) for ends in shard.ranges]
    if not any(widths):
        return []
    mine = hidden.new_zeros(len(hidden), max(widths))
    own = _lead(shard.start, shard.start + len(weight))
    if own:
        mine[:, :own] = hidden @ weight[:own].t()
    everyone = shard.gather(mine)
    return [
        (shard.ranges[rank][0], everyone[rank][:, : widths[rank]])
        for rank in shard.order
        if widths[rank]
    ]


def _whole_bias(bias: Tensor, shard: Shard) -> Tensor:
    """[V]: numbers of the vocabulary are small where its logits are not."""
    padded = bias.new_zeros(shard.widest(0))
    padded[: len(bias)] = bias
    everyone = shard.gather(padded)
    ends = shard.ranges
    return torch.cat([everyone[rank][: ends[rank][1] - ends[rank][0]] for rank in shard.order])


def _best_of_all(
    rows: Rows, state: Tensor, best: Tensor, shard: Shard, like: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    everyone = shard.gather(torch.cat((state, best), 1))[shard.order]
    rows.merge(everyone[:, :, :STATE].contiguous(), state)
    # Of equal scores the earlier block's, as in one pass.
    winner = everyone[:, :, STATE].argmax(0)
    drawn = everyone.gather(0, winner[None, :, None].expand(1, *everyone.shape[1:]))[0]
    state[:, 6], token = drawn[:, 6], drawn[:, STATE + 1].to(torch.int64)
    out = empty_outputs(rows.n, False, like)
    finished: dict[str, Any] = {name: out[name] for name in DIFFERENTIABLE}
    replace(rows, targets=token).finish(state, shard.vocab(0), **finished)
    return token, out
