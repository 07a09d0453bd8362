"""linear_sample where every rank holds some of the vocabulary: the token that one rank would draw.

A block of the vocabulary is scored and drawn in by the rank that holds its first column. Shards do
not end where blocks do, so each rank also makes the logits from its start to the next block's for
the rank before it: at most 2047 columns. Then everyone has the best score, its token and the merged
state by one exchange.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from logitless.backends.row_kernels.rows import BLOCK, STATE, Rows
from logitless.ops.head.adapter.joined import Matrix
from logitless.ops.head.gemm import all_logits, logit_tiles
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.op import empty_states
from logitless.ops.sharding.shard import Shard


def sample_shard(
    h: Tensor,  # [n, H], padded by tiling.operand
    weight: Matrix,  # [V of this rank, H]
    rows: Rows,  # of n rows; its bias is that of the whole vocabulary
    tiling: Tiling,
    shard: Shard,
    draw: Callable[[int, slice, Tensor], None],  # (vocabulary id, rows, tile): as `Rows.sample`
    state: Tensor,  # [n, STATE]
    best: Tensor,  # [n, SAMPLE_STATE]
) -> None:
    """State, best score and token of every row over the whole vocabulary, the same on every rank.

    `draw` works on the same state and best, and starts nothing afresh.
    """
    empty_states(state)
    best[:, 0].fill_(-float("inf"))
    best[:, 1].fill_(-1.0)
    n, start, stop = rows.n, shard.start, shard.start + len(weight)
    leads = _leads(h, weight, rows, tiling, shard)
    begin = start + _lead(start, stop)
    # The last block is whole without others' columns only at the end of the vocabulary.
    end = stop if stop == shard.vocab(0) else max(stop // BLOCK * BLOCK, begin)
    if begin < end:
        for first, chunk, tile in logit_tiles(
            h, weight[begin - start : end - start], n, tiling, rows.backend
        ):
            draw(begin + first, chunk, tile)
    if end < stop:
        parts = [all_logits(h, weight[end - start :], n, tiling, rows.backend)]
        parts += [lead for first, lead in leads if stop <= first < end + BLOCK]
        draw(end, slice(0, n), torch.cat(parts, 1))
    _best_of_all(rows, state, best, shard)


def _lead(start: int, stop: int) -> int:
    """How many of a shard's first columns belong to a block that starts before it."""
    return min(stop, -(-start // BLOCK) * BLOCK) - start


def _leads(
    h: Tensor, weight: Matrix, rows: Rows, tiling: Tiling, shard: Shard
) -> list[tuple[int, Tensor]]:
    """(vocabulary id, logits) of every rank's lead, in the order of columns."""
    widths = [_lead(*ends) for ends in shard.ranges]
    if not any(widths):
        return []
    n = rows.n
    mine = h.new_zeros(n, max(widths))
    own = _lead(shard.start, shard.start + len(weight))
    if own:
        mine[:, :own] = all_logits(h, weight[:own], n, tiling, rows.backend)
    return [
        (shard.ranges[rank][0], lead[:, : widths[rank]])
        for rank, lead in zip(shard.order, shard.gather(mine).unbind(0), strict=True)
        if widths[rank]
    ]


def _best_of_all(rows: Rows, state: Tensor, best: Tensor, shard: Shard) -> None:
    everyone = shard.gather(torch.cat((state, best), 1))
    rows.merge(everyone[:, :, :STATE].contiguous(), state)
    # Of equal scores the earlier block's, as in one pass.
    winner = everyone[:, :, STATE].argmax(0)
    drawn = everyone.gather(0, winner[None, :, None].expand(1, *everyone.shape[1:]))[0]
    # y of the token: that of each rank's own draw is in its state.
    state[:, 6] = drawn[:, 6]
    best.copy_(drawn[:, STATE:])
