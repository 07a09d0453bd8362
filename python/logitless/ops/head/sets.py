"""torch op: logits of hidden x weight at the tokens of each row's set, and no others.

By products with gathered rows of weight, or where the sets are large from tiles of a dense
product; the gradients alike. A row that is gathered has the same bits whatever else the call has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory, registry
from logitless.backends.base import Backend
from logitless.backends.row_kernels.rows import Rows
from logitless.ops.head.backward import power_of_two, zeros_like
from logitless.ops.head.engine import TileSinks, backward_tiles, mixes
from logitless.ops.head.gemm import GradientSum, logit_tiles, products_of
from logitless.ops.head.sparse import SparseGradient
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import RowGradients
from logitless.ops.rows.sets import OP, RowSets
from logitless.ops.sharding.shard import Shard, sum_dtype
from logitless.ops.torch_op import Autograd, Needs, register


class SetProducts(NamedTuple):
    """How the logits of sets are made."""

    backend: str
    dense: bool  # by dense products
    weight_rows: bool  # d_weight as the rows that are not 0


class SetGradients(NamedTuple):
    """Empty where none is asked for."""

    hidden: Tensor
    weight: Tensor  # [V, H], or [names, H]
    names: Tensor  # [names] int64, with `weight_rows`


class _Arguments(NamedTuple):
    hidden: Tensor
    weight: Tensor
    sets: RowSets
    how: SetProducts
    tiling: Tiling  # of dense products
    shard: Shard
    named: Tensor | None  # int64, of `weight_rows`: as in `MaskedRows`


class Entries(NamedTuple):
    """Numbers at the tokens of sets, as tiles take and give them."""

    offsets: Tensor
    columns: Tensor
    values: Tensor
    backend: Backend

    def part(self, chunk: slice) -> Entries:
        """Those of some rows."""
        offsets = self.offsets[chunk.start : chunk.stop + 1]
        if self.backend.asynchronous:
            # its kernels take offsets that start anywhere, which nobody waits for
            return self._replace(offsets=offsets)
        first, last = int(offsets[0]), int(offsets[-1])
        return Entries(
            offsets - first, self.columns[first:last], self.values[first:last], self.backend
        )

    def read(self, tile: Tensor, start: int) -> None:
        assert self.backend.sets is not None
        threads = torch.get_num_threads()
        self.backend.sets.read_tile(*self[:3], tile=tile, start=start, threads=threads)

    def write(self, tile: Tensor, start: int) -> None:
        assert self.backend.sets is not None
        threads = torch.get_num_threads()
        self.backend.sets.write_tile(*self[:3], tile=tile, start=start, threads=threads)


def _rows(matrix: Tensor) -> Tensor:
    """As the kernels read it."""
    matrix = matrix.detach()
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def _forward(
    hidden: Tensor,
    weight: Tensor,
    sets: RowSets,
    how: SetProducts,
    tiling: Tiling,
    shard: Shard,
    named: Tensor | None,
) -> Tensor:  # [entries] float32 or float64
    backend, n = registry.get(how.backend), len(sets.places)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = hidden.new_empty(len(sets.columns), dtype=wide)
    h = hidden.detach().index_select(0, sets.places)
    if how.dense:
        entries = Entries(*sets[1:], values, backend)
        operand = tiling.operand(h, None)
        for start, chunk, tile in logit_tiles(operand, weight.detach(), n, tiling, backend):
            entries.part(chunk).read(tile, start)
    else:
        _gather(sets, h, _rows(weight), values, backend)
    return values


def _gather(sets: RowSets, h: Tensor, weight: Tensor, values: Tensor, backend: Backend) -> None:
    """Products of the rows of h with those of weight that their sets name.

    Where the sets name most rows of weight several times they go by the vocabulary: weight streams
    by once, and h stays in a cache (512 ids a row of 1024, H = 1024, bfloat16: a third of the
    time). A product has the same bits either way.
    """
    assert backend.sets is not None and backend.sparse is not None
    threads, (vocab, entries) = torch.get_num_threads(), (len(weight), len(values))
    if entries < vocab:
        backend.sets.logits(*sets[1:], values, hidden=h, weight=weight, threads=threads)
        return
    numbers = torch.arange(entries, dtype=torch.float64, device=h.device)
    each = torch.arange(len(h), device=h.device)
    by_row = SparseGradient(*sets[1:], numbers, each.int(), backend.sparse)
    offsets, rows, places, names, _ = by_row.transposed(vocab, each)
    counts = offsets.new_zeros(vocab)
    counts[names.long()] = offsets.diff()
    offsets = counts.new_zeros(vocab + 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    found = torch.empty_like(values)
    backend.sets.logits(offsets, rows, found, hidden=weight, weight=h, threads=threads)
    values[places.long()] = found


def _forward_fake(hidden: Tensor, weight: Tensor, sets: RowSets, *_: object) -> Tensor:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.new_empty(sets.columns.shape[0], dtype=wide)


def _backward_kernel(
    hidden: Tensor,
    weight: Tensor,
    sets: RowSets,
    how: SetProducts,
    tiling: Tiling,
    shard: Shard,
    named: Tensor | None,
    g: Tensor,  # [entries]
    needs: list[bool],
) -> SetGradients:
    hidden, weight, n = _rows(hidden), _rows(weight), len(sets.places)
    own, width = None, hidden.shape[1]
    if needs[0]:
        own = hidden.new_empty(n, width, dtype=sum_dtype(shard, hidden.dtype))
    nothing, names = hidden.new_empty(0), hidden.new_empty(0, dtype=torch.int64)
    d_weight = nothing
    if how.dense:
        d_weight = memory.buffer_like(weight) if needs[1] else nothing
        _dense(hidden, weight, sets, how, tiling, g, own, d_weight if needs[1] else None)
    else:
        backend = registry.get(how.backend)
        assert backend.sparse is not None
        each = torch.arange(n, dtype=torch.int32, device=hidden.device)
        gradient = SparseGradient(*sets[1:], g, each, backend.sparse)
        if not backend.asynchronous:
            # of a device nobody asks how many: its products pass them by
            gradient = gradient.without_zeros()
        if own is not None:
            gradient.multiply(weight, own, add=False)
        if needs[1]:
            columns = gradient.transposed(weight.shape[0], sets.places)
            if how.weight_rows:
                if named is None:
                    columns = columns.without_empty(weight.shape[0])
                else:
                    columns = _of_names(columns, named)
                names = columns.names.long()
                each = torch.arange(len(names), dtype=torch.int32, device=hidden.device)
                d_weight = memory.buffer(len(names) * width, weight.dtype, weight)
                d_weight = d_weight.view(len(names), width)
                columns._replace(names=each).multiply(hidden, d_weight, add=False)
            else:
                # a product writes the rows that it names, empty ones too
                all_named = len(columns.names) == len(weight)
                room = memory.buffer_like if all_named else zeros_like
                d_weight = room(weight, weight.dtype)
                # written, not added to the zeros, which nobody has to read
                columns.multiply(hidden, d_weight, add=False)
    d_hidden = nothing
    if own is not None:
        shard.reduce_hidden(own)
        d_hidden = torch.zeros_like(hidden)
        d_hidden.index_copy_(0, sets.places, own.to(hidden.dtype))
    return SetGradients(d_hidden, d_weight, names)


def _of_names(columns: SparseGradient, named: Tensor) -> SparseGradient:
    """Of a transpose with a row for every id; the others are empty."""
    offsets = torch.cat((columns.offsets[named], columns.offsets[-1:]))
    return columns._replace(offsets=offsets, names=columns.names[named])


def _dense(
    hidden: Tensor,
    weight: Tensor,
    sets: RowSets,
    how: SetProducts,
    tiling: Tiling,
    g: Tensor,
    d_hidden: Tensor | None,  # of the rows that have a set
    d_weight: Tensor | None,
) -> None:
    backend, n = registry.get(how.backend), len(sets.places)
    power = power_of_two(RowGradients(g, None)) if tiling.operands == torch.float16 else 1.0
    rows = Rows(backend, n, targets=sets.places, threads=torch.get_num_threads())
    products, mixed = products_of(backend), mixes(rows, weight)

    def weight_sum(start: int, stop: int, count: int) -> GradientSum:
        assert d_weight is not None
        return GradientSum(
            d_weight[start:stop], products, mixed=mixed, single=count == 1, alpha=1 / power
        )

    operand = tiling.operand(hidden.index_select(0, sets.places), None)
    backward_tiles(
        operand, weight, rows, hidden.new_empty(n, 0), RowGradients(None, None),
        LogitStore(hidden.new_empty(0, dtype=tiling.dtype), n, tiling), None,
        TileSinks(d_hidden, None if d_weight is None else weight_sum, None, 1 / power),
        Entries(*sets[1:], g * power, backend),
    )  # fmt: skip


def _backward_fake(
    hidden: Tensor,
    weight: Tensor,
    sets: RowSets,
    how: SetProducts,
    tiling: Tiling,
    shard: Shard,
    named: Tensor | None,
    g: Tensor,
    needs: list[bool],
) -> SetGradients:
    if how.weight_rows:
        number = torch.library.get_ctx().new_dynamic_size() if named is None else named.shape[0]
        names = hidden.new_empty(number, dtype=torch.int64)
        d_weight = weight.new_empty(names.shape[0], weight.shape[1])
    else:
        names, d_weight = hidden.new_empty(0, dtype=torch.int64), torch.empty_like(weight)
    return SetGradients(
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        d_weight if needs[1] else hidden.new_empty(0),
        names,
    )


_backward_op = register("set_logits_backward", _backward_kernel, _backward_fake)


def _backward(given: _Arguments, upstream: tuple[Tensor], needs: Needs) -> dict[str, Tensor | None]:
    needed = [needs(name) for name in ("hidden", "weight")]
    d_hidden, d_weight, names = _backward_op(*given, upstream[0].contiguous(), needed)
    if given.how.weight_rows and needed[1]:
        d_weight = torch.sparse_coo_tensor(
            names[None], d_weight, given.weight.shape, is_coalesced=True, check_invariants=False
        )
    found = (("hidden", d_hidden), ("weight", d_weight))
    return {name: x if need else None for (name, x), need in zip(found, needed, strict=True)}


set_logits = register(
    "set_logits",
    _forward,
    _forward_fake,
    autograd=Autograd(
        OP, ("",), lambda given, out: _Arguments(*given), _backward, lambda saved: False
    ),
)
