"""Forward that keeps the largest entries, and the backward of rows served by them beside others.

Of a sharded vocabulary each rank keeps the largest of its own columns, and gets those of all in the
forward. Its share of the backward is what lies in its columns, and d_hidden is added up once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.rows import STATE, Rows
from logitless.ops.head.engine import Gradients, Upstream, fold, unfold
from logitless.ops.head.sparse import SparseGradient, Support
from logitless.ops.head.tiling import Sum, Tiles
from logitless.ops.sharding.shard import Shard, sum_dtype


class Folded(NamedTuple):
    """Rows after a forward that kept no logits."""

    rows: Rows  # n of them, without a mask
    place: Tensor | None  # [n] their places in hidden; None: all
    state: Tensor  # [n, STATE]
    support: Support
    shard: Shard


def fold_support(
    hidden: Tensor, weight: Tensor, folded: Folded, tiles: Tiles, tail_mass: float, extras: bool
) -> None:
    rows, index, state, support, shard = folded
    mine, local = state[: rows.n], shard.local(rows)
    kept = support.candidates(rows.n, shard.vocab(len(weight)), tail_mass)
    no_logits = hidden.new_empty(0, dtype=tiles.dtype)
    fold(tiles.operand(hidden, index), weight, local, mine, tiles, no_logits, extras, kept)
    shard.merge(mine, rows)


def measure(folded: Folded, vocab: int, tail_mass: float, dtype: torch.dtype) -> None:
    """`vocab`: of all shards. `dtype`: that of the logits."""
    rows, _, state, support, shard = folded
    kept = support.candidates(rows.n, vocab, tail_mass)
    support.measure(rows, state[: rows.n], kept, tail_mass, shard, dtype)


class Served(NamedTuple):
    """The rows that have a gradient, by how they get it: places among the folded rows."""

    sparse: Tensor
    dense: Tensor


def split(folded: Folded, g: Upstream, tail_mass: float) -> Served:
    some = g.some(folded.rows.targets)
    served = folded.support.serves(folded.rows, g, tail_mass)
    return Served((some & served).nonzero().squeeze(1), (some & ~served).nonzero().squeeze(1))


def weight_gradient(weight: Tensor, dtype: torch.dtype, served: Served) -> Tensor:
    """Memory for d_weight: dense rows overwrite all of it, kept entries are added to zeros.

    Zeros are pages that the system hands out when they are first written. torch.zeros writes all of
    them: 90 ms of a [151936, 1024] bfloat16 gradient.
    """
    if len(served.dense):
        return memory.buffer_like(weight, dtype)
    return zeros(weight, dtype)


def zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    item = torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(like.numel(), f"i{item}")).view(dtype).view(like.shape)


def unfold_support(
    hidden: Tensor,
    weight: Tensor,
    folded: Folded,
    g: Upstream,  # [n] of the folded rows
    served: Served,
    tiles: Tiles,
    tail_mass: float,
    needs: tuple[bool, bool, bool],
    out: tuple[Tensor, Tensor, Tensor],  # zeros; d_weight: weight_gradient
    power: float = 1.0,
) -> None:
    """Dense rows by products made again, the others from what they kept; into d_hidden, d_weight
    and d_bias. The dense ones come first: a sum of products overwrites what it is the first of.

    `power`: scale of the d(logits) of dense rows, see one_pass.py.
    """
    index, shard, n = folded.place, folded.shard, len(served.sparse)
    place = torch.arange(folded.rows.n) if index is None else index
    d_hidden, d_weight, d_bias = out
    # d_hidden of the served rows, then of the others.
    own = hidden.new_empty(
        n + tiles.padded(len(served.dense)) if needs[0] else 0, hidden.shape[1],
        dtype=sum_dtype(shard, d_hidden.dtype),
    )  # fmt: skip
    if len(served.dense):
        mine = (own[n:], d_weight, d_bias)
        _dense(hidden, weight, folded, g, served.dense, place, tiles, needs, mine, power)
    if n:
        mine = (own[:n], d_weight, d_bias)
        _sparse(hidden, weight, folded, g, served.sparse, place, tail_mass, needs, mine)
    if needs[0]:
        chosen = torch.cat(served)
        total = own[: len(chosen)]
        shard.reduce(total)
        d_hidden.index_copy_(0, place[chosen], total.to(d_hidden.dtype))


def _sparse(
    hidden: Tensor,
    weight: Tensor,
    folded: Folded,
    g: Upstream,
    chosen: Tensor,
    place: Tensor,
    tail_mass: float,
    needs: tuple[bool, bool, bool],
    out: tuple[Tensor, Tensor, Tensor],  # d_hidden of the chosen rows alone
) -> None:
    rows, _, state, support, shard = folded
    d_hidden, d_weight, d_bias = out
    kept = support.candidates(rows.n, shard.vocab(len(weight)), tail_mass)
    gradient = SparseGradient.of(rows, state[: rows.n], kept, g, chosen, hidden.dtype)
    if shard.group:
        gradient = gradient.within(shard.start, shard.start + len(weight))
    if needs[0]:
        gradient.multiply(weight, d_hidden, add=False)
    if needs[1] or needs[2]:
        columns = gradient.transposed(len(weight), place[chosen])
        if needs[1]:
            columns.multiply(hidden, d_weight, add=True)
        if needs[2]:
            columns.add_row_sums(d_bias)


def _dense(
    hidden: Tensor,
    weight: Tensor,
    folded: Folded,
    g: Upstream,
    chosen: Tensor,
    place: Tensor,
    tiles: Tiles,
    needs: tuple[bool, bool, bool],
    out: tuple[Tensor, Tensor, Tensor],  # d_hidden of the chosen rows alone, padded
    power: float,
) -> None:
    d_hidden, d_weight, d_bias = out
    tiles = tiles._replace(kept=0)
    unfold(
        tiles.operand(hidden, place[chosen]),
        weight,
        folded.shard.local(folded.rows).gather(chosen),
        folded.state[chosen],
        Upstream(*(None if x is None else x[chosen] * power for x in g)),
        tiles,
        hidden.new_empty(0, dtype=tiles.dtype),
        None,
        len(chosen),
        Gradients(
            d_hidden if needs[0] else None,
            (lambda a, b, parts: Sum(d_weight[a:b], single=parts == 1, alpha=1 / power))
            if needs[1] else None,
            d_bias if needs[2] else None,
            1 / power,
        ),
    )  # fmt: skip


def folded_rows(rows: Rows, index: Tensor | None, hidden: Tensor, shard: Shard) -> Folded:
    """Memory for the forward of `rows`, which have room for all of hidden's."""
    state = hidden.new_empty(len(hidden), STATE, dtype=torch.float64)
    return Folded(rows.gather(index), index, state, Support.empty(len(hidden)), shard)
