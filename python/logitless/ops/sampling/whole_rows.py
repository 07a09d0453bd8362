"""Draws from the top_k, top_p and min_p of each row where no largest logits are kept: from all
logits of as many rows at a time as the budget has room for. The host waits for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitless.ops.sampling.kept_bits import KeptBits

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.row_kernels.rows import Rows
    from logitless.ops.head.adapter.joined import Matrix
    from logitless.ops.head.planner.plan import Plan
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.sampling.draw import Noise
    from logitless.ops.sampling.truncated import Truncation
    from logitless.ops.sharding.shard import Shard


def draw_from_whole_rows(
    h: Tensor,  # [n, H], not padded
    weight: Matrix,  # [V of this rank, H]
    rows: Rows,
    tiling: Tiling,
    plan: Plan,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
    state: Tensor,  # [n, STATE], written
) -> tuple[Tensor, KeptBits]:  # [n] int64
    """As `draw_from_largest`."""
    import torch

    from logitless.ops.sampling.draw import kernels_of

    n, vocab = len(h), shard.vocab(len(weight))
    rows, kernels = shard.entire(rows), kernels_of(rows.backend)
    token, kept = h.new_empty(n, dtype=torch.int64), KeptBits.empty(n, vocab, h)
    for start in range(0, n, step := rows_at_once(n, vocab, tiling, plan, shard)):
        chunk = slice(start, min(start + step, n))
        part, mine = rows.part(chunk), state[chunk]
        logits = logits_of(h[chunk], weight, part, tiling, shard)
        # In the tiles that score it, so that sums round as theirs do.
        for first, last in tiling.spans(vocab):
            part.forward(logits[:, first:last], mine, start=first, first=first == 0)
        kernels.draw_truncated(
            part, mine, token[chunk], logits=logits, **truncation.arguments, **noise.of(chunk),
            **kept.outputs(chunk),
        )  # fmt: skip
    return token, kept


def rows_at_once(n: int, vocab: int, tiling: Tiling, plan: Plan, shard: Shard) -> int:
    """Of n, in parts of nearly the same size. Of a sharded vocabulary a row is held once more: as
    the parts that it is put together from."""
    parts = len(shard.ranges) * shard.widest(0) if shard.group else 0
    room = max((plan.budget - plan.total_bytes) // ((vocab + parts) * tiling.dtype.itemsize), 1)
    return max(-(-n // -(-n // room)), 1) if n else 1


def logits_of(h: Tensor, weight: Matrix, rows: Rows, tiling: Tiling, shard: Shard) -> Tensor:
    """[r, V] of a few rows."""
    from logitless.ops.head.gemm import all_logits

    mine = all_logits(tiling.operand(h, None), weight, len(h), tiling, rows.backend)
    return shard.whole(mine)
