"""The rows of a forward, and the gradients of those that have any: by dense products, or from the
largest entries of a row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.base import Backend
from logitless.backends.row_kernels import errors
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.inputs.checks import is_tracing
from logitless.inputs.options import Tail
from logitless.inputs.records import changed
from logitless.ops.head.adapter.joined import Joined, JoinedSum, Matrix, matrices, parts
from logitless.ops.head.engine import TileSinks, backward_tiles, forward_tiles, mixes
from logitless.ops.head.gemm import GradientSum, products_of
from logitless.ops.head.sparse import SparseGradient, TopKSupport, first_entries
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import RowGradients
from logitless.ops.rows.whole import first_rows, part_of
from logitless.ops.sharding.shard import Shard, sum_dtype

# float16 tiles of d(logits) would lose what is below 6e-8, and a loss's coefficients are about
# 1 / tokens: they are multiplied by a power of two that brings the largest to this.
LARGEST_FLOAT16 = 2.0**-4


class Head(NamedTuple):
    """hidden x weight of a call, on the columns of this rank; both with the columns of an adapter,
    where there is one."""

    hidden: Tensor  # [N, H]
    weight: Matrix  # [V, H]
    tiling: Tiling
    shard: Shard
    tail: Tail

    @property
    def vocab(self) -> int:
        return self.shard.vocab(self.weight.shape[0])


class Forward(NamedTuple):
    """Rows of a call after, or ready for, the pass over all tiles."""

    rows: Rows  # n of them, without a mask unless their number is fixed
    places: Tensor | None  # [n] in hidden; None: all rows of it
    operand: Tensor | None  # [n, H], padded; None: to be made again
    state: Tensor  # [n, STATE]
    store: LogitStore
    support: TopKSupport | None  # with tail_mass > 0

    @property
    def ids(self) -> Tensor:
        """Their places in hidden."""
        if self.places is None:
            return torch.arange(self.rows.n, device=self.state.device)
        return self.places


def is_fixed(tiling: Tiling, backend: Backend) -> bool:
    """Whether a call takes as many rows as it has room for, so that the host knows all sizes."""
    return tiling.capacity > 0 and backend.asynchronous


def counted(mask: Tensor | None, tiling: Tiling, backend: Backend) -> Tensor | None:
    """The places where the mask is true, for a forward and its backward: of a device the host waits
    for their number, and so once. None where there is none to count, or in a traced graph, whose
    ops count for themselves."""
    if mask is None or is_fixed(tiling, backend) or is_tracing() or not memory.is_plain(mask):
        return None
    places: Tensor = backend.select(mask)
    return places


def active(rows: Rows, tiling: Tiling, places: Tensor | None = None) -> tuple[Rows, Tensor | None]:
    """The rows where the mask is true, and their places; None: all. `places`: what `counted` gave,
    if anything."""
    n, mask, capacity = rows.n, rows.mask, tiling.capacity
    if is_fixed(tiling, rows.backend) and (mask is not None or capacity >= n):
        return (rows, None) if capacity >= n else _padded(rows, capacity)
    index = rows.backend.select(mask) if places is None and mask is not None else places
    count = n if index is None else index.shape[0]
    if capacity and count > capacity:
        raise ValueError(f"{rows.op}: {errors.more_active(count, capacity)}")
    if mask is None:
        return rows, None
    if count == n:
        return changed(rows, mask=None), None
    return rows.gather(index), index


def _padded(rows: Rows, capacity: int) -> tuple[Rows, Tensor]:
    """As many rows, those that are left over being one outside the mask, whose results and
    gradients are 0 and may be written as often as one likes. If more are active all of these are
    made NaN, by their scale, and it is flagged."""
    mask, index = rows.mask, rows.backend.select_fixed(rows.mask, capacity)
    more = errors.lower_where_more(errors.flag_of(rows.op, mask.device), mask.sum(), capacity)
    some = rows.gather(index)
    scale = some.row_scale
    if scale is None:
        scale = torch.full((capacity,), rows.scale, dtype=torch.float64, device=mask.device)
    return changed(some, mask=mask[index], row_scale=scale.masked_fill(more, math.nan)), index


def forward(
    head: Head,
    rows: Rows,
    index: Tensor | None,
    kept: Tensor,  # flat memory for the logits that are kept
    state: Tensor,  # [n or more, STATE]
    support: TopKSupport | None,  # of n rows or more
    *,
    extras: bool,
) -> Forward:
    """The states of rows over the whole vocabulary."""
    n, shard, tiling = rows.n, head.shard, head.tiling
    operand = tiling.operand(head.hidden, index, rows.mask)
    state = first_rows(state, n)
    support = None if support is None else support.first(n)
    topk: TopK | None = None
    if support is not None:
        entries = first_entries(head.tail, tiling, head.vocab, shard)
        topk = support.topk(head.vocab, head.tail, entries)
    store = LogitStore(kept, n, tiling)
    forward_tiles(operand, head.weight, shard.local(rows), state, store, extras, topk)
    shard.merge(state, rows)
    return Forward(rows, index, operand, state, store, support)


def wide_dtype(hidden: Tensor) -> torch.dtype:
    """In which sums over the vocabulary and of small gradients are kept."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def new_state(n: int, like: Tensor) -> Tensor:
    return like.new_empty(n, STATE, dtype=torch.float64)


class Served(NamedTuple):
    """The rows that have a gradient, by how they get it: places among the rows of a forward."""

    sparse: Tensor
    dense: Tensor
    entries: int  # kept of the sparse ones

    @classmethod
    def of(cls, f: Forward, g: RowGradients, tail: Tail) -> Served:
        if is_fixed(f.store.tiling, f.rows.backend):
            everyone = torch.arange(f.rows.n, device=f.state.device)
            return cls(everyone[:0], everyone, 0)
        some, select = g.nonzero(f.state), f.rows.backend.select
        if f.support is None:
            return cls(some.new_empty(0, dtype=torch.int64), select(some), 0)
        served = f.support.serves(f.rows, g, tail)
        sparse, dense = some & served, some & ~served
        # These are shapes of what follows. The host waits for a device here, once for all three.
        sums = (sparse.sum(), dense.sum(), torch.where(sparse, f.support.counts, 0).sum())
        n_sparse, n_dense, entries = torch.stack(sums).tolist()
        return cls(select(sparse, n_sparse), select(dense, n_dense), entries)

    @property
    def none(self) -> bool:
        return self.sparse.shape[0] == self.dense.shape[0] == 0


class Gradients(NamedTuple):
    """Memory for the gradients of a call; None where none is asked for."""

    hidden: Tensor | None  # [N, H], zeros where `covered` does not say that all is written
    weight: Tensor | None  # [V, H], see `weight_gradient`
    bias: Tensor | None  # [V], zeros at first
    up: Tensor | None = None  # [V, r] of an adapter, as `weight_gradient`, in float32 or float64


def new_gradients(head: Head, f: Forward, served: Served, needs: list[bool]) -> Gradients:
    """Memory for the gradients that are asked for of hidden, weight and bias, and B's."""
    hidden, (weight, up) = head.hidden, matrices(head.weight)
    wide = wide_dtype(hidden)
    of_hidden = torch.empty_like if covers(head, f, served) else torch.zeros_like
    return Gradients(
        of_hidden(hidden) if needs[0] else None,
        weight_gradient(weight, weight.dtype, served) if needs[1] else None,
        hidden.new_zeros(len(weight), dtype=wide) if needs[2] else None,
        None if up is None else weight_gradient(up, wide, served),
    )


def weight_gradient(weight: Tensor, dtype: torch.dtype, served: Served) -> Tensor:
    """Memory for d_weight: dense rows overwrite all of it, sparse ones are added to zeros."""
    return memory.buffer_like(weight, dtype) if served.dense.shape[0] else zeros_like(weight, dtype)


def zeros_like(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in memory of earlier calls: new pages, which the system fills with zeros one after the
    other, take longer."""
    return memory.buffer_like(like, dtype).zero_()


def backward(
    head: Head,
    f: Forward,
    g: RowGradients,  # [n] of the forward's rows
    served: Served,
    out: Gradients,
    *,
    started: bool = False,  # whether d_weight holds a sum already
    whole: bool = True,  # whether no other chunk of rows follows or came before
    rescale: bool = False,  # see LARGEST_FLOAT16
) -> None:
    """Add the gradients of the rows to `out`. Dense ones come first: a sum of products overwrites
    what it is the first of. d_hidden is added up over ranks once."""
    shard, n_sparse, n_dense = head.shard, served.sparse.shape[0], served.dense.shape[0]
    own = None if out.hidden is None else _hidden_rows(head, f, served, out.hidden)
    if n_dense:
        of_dense = None if own is None else own[n_sparse:]
        _dense(head, f, g, served.dense, of_dense, out, started, whole, rescale)
    if n_sparse:
        _sparse(head, f, g, served, None if own is None else own[:n_sparse], out)
    if own is not None and out.hidden is not None:
        total = own[: n_sparse + n_dense]
        shard.reduce_hidden(total)
        if own is not out.hidden:
            place = torch.cat(served[:2]) if n_sparse else served.dense
            place = place if f.places is None else f.places[place]
            out.hidden.index_copy_(0, place, total.to(out.hidden.dtype))


def _hidden_rows(head: Head, f: Forward, served: Served, d_hidden: Tensor) -> Tensor:
    """Memory for d_hidden of the rows that have any, in the order of `served`: that of all rows
    where it may be written in place."""
    dtype = sum_dtype(head.shard, d_hidden.dtype)
    rows = served.sparse.shape[0] + head.tiling.padded(served.dense.shape[0])
    if covers(head, f, served) and rows == d_hidden.shape[0] and dtype == d_hidden.dtype:
        return d_hidden
    return d_hidden.new_empty(rows, d_hidden.shape[1], dtype=dtype)


def covers(head: Head, f: Forward, served: Served) -> bool:
    """Whether every row of hidden gets its gradient from dense products, in order."""
    return f.places is None and served.dense.shape[0] == f.rows.n == head.hidden.shape[0]


def _dense(
    head: Head,
    f: Forward,
    g: RowGradients,
    chosen: Tensor,
    d_hidden: Tensor | None,  # of the chosen rows alone, padded
    out: Gradients,
    started: bool,
    whole: bool,
    rescale: bool,
) -> None:
    # Beside kept entries any number of backwards may follow: kept logits stay as they are.
    in_place = f.support is None or not f.store.columns
    index = None if chosen.shape[0] == f.rows.n and in_place else chosen
    g = g if index is None else g.select(index)
    of_operands = head.tiling.operands
    rescale = rescale or of_operands != head.tiling.dtype
    narrow = rescale and of_operands == torch.float16
    power = power_of_two(g) if narrow else 1.0
    d_weight, d_up, products = out.weight, out.up, products_of(f.rows.backend)
    none = d_weight is None and d_up is None
    mixed = mixes(f.rows, head.weight)

    def sum_of(d: Tensor, single: bool) -> GradientSum:
        return GradientSum(
            d, products, mixed=mixed, single=single, started=started, alpha=1 / power
        )

    def weight_sum(start: int, stop: int, count: int) -> GradientSum | JoinedSum:
        single = whole and count == 1
        place = slice(start, stop)
        of_weight = None if d_weight is None else sum_of(part_of(d_weight, place), single)
        if d_up is not None:
            assert isinstance(head.weight, Joined)
            return JoinedSum(head.weight.columns, of_weight, sum_of(part_of(d_up, place), single))
        assert of_weight is not None
        return of_weight

    backward_tiles(
        _operand(head, f, index),
        head.weight,
        head.shard.local(f.rows).gather(index),
        f.state if index is None else f.state.index_select(0, index),
        g.scaled(power),
        f.store,
        index,
        TileSinks(d_hidden, None if none else weight_sum, out.bias, 1 / power),
    )


def _operand(head: Head, f: Forward, index: Tensor | None) -> Tensor:
    if index is None:
        if f.operand is not None:
            return f.operand
        return head.tiling.operand(head.hidden, f.places, f.rows.mask)
    place = index if f.places is None else f.places[index]
    return head.tiling.operand(head.hidden, place)


def power_of_two(g: RowGradients) -> float:
    # of a device one number is waited for, whatever g has
    largest = float(torch.stack([x.abs().max() for x in g if x is not None]).max())
    if not math.isfinite(largest):
        # a scaler of losses looks for this in the gradients
        return 1.0
    return float(2.0 ** -math.ceil(math.log2(largest / LARGEST_FLOAT16)))


def _sparse(
    head: Head,
    f: Forward,
    g: RowGradients,
    served: Served,
    d_hidden: Tensor | None,  # of the sparse rows alone
    out: Gradients,
) -> None:
    assert f.support is not None
    shard, weight, kept = head.shard, head.weight, f.support.topk(head.vocab, head.tail)
    gradient = SparseGradient.of(
        f.rows, f.state, kept, g, served.sparse, served.entries, head.hidden.dtype
    )
    if shard.group:
        gradient = gradient.within(shard.start, shard.start + weight.shape[0])
    if d_hidden is not None:
        for part, place in parts(weight):
            gradient.multiply(part, d_hidden[:, place], add=False)
    if any(x is not None for x in (out.weight, out.up, out.bias)):
        columns = gradient.transposed(weight.shape[0], f.ids[served.sparse])
        for d, (_, place) in zip((out.weight, out.up), parts(weight), strict=False):
            if d is not None:
                columns.multiply(head.hidden[:, place], d, add=True)
        if out.bias is not None:
            topk = f.rows.backend.topk
            assert topk is not None
            topk.add_row_sums(*columns[:3], names=columns.names, out=out.bias)
