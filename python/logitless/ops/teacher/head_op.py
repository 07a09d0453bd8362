"""torch op of two heads: divergences forward; backward by kept logits, or by other products.

Rows outside the mask enter no product; rows whose upstream gradients are zero enter no product of
the backward. Both heads have the same tiles of the vocabulary, so that a tile of each is in cache
at once; the logits of a column are kept of both, or of none. An adapter is more columns of the
student's hidden and weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.row_kernels.rows import STATE
from logitless.inputs.options import EXACT
from logitless.ops.head.adapter.joined import Matrix, joined
from logitless.ops.head.backward import (
    Forward,
    Head,
    Served,
    active,
    backward,
    new_gradients,
    wide_dtype,
)
from logitless.ops.head.engine import forward_tiles
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import RowGradients, Transform
from logitless.ops.rows.outputs import scattered
from logitless.ops.sharding.shard import Shard
from logitless.ops.teacher.chain import TeacherChain
from logitless.ops.teacher.pairs import (
    DIFFERENTIATED,
    Measure,
    PairedRows,
    PairOutputs,
    empty_pair_states,
)
from logitless.ops.teacher.tiles import HeadTiles
from logitless.ops.torch_op import Autograd, Needs, Written, register

OP = "linear_divergence"


class _Given(NamedTuple):
    hidden: Tensor  # [N, H], or with adapters [N, H + r]
    weight: Tensor  # [V, H]
    teacher_hidden: Tensor  # [N, G]
    teacher_weight: Tensor  # [V, G]
    student: Transform
    teacher: TeacherChain
    mask: Tensor | None
    measure: Measure
    tiling: Tiling
    teacher_tiling: Tiling
    shard: Shard
    up: Tensor | None  # [V, r] of adapters
    places: Tensor | None  # see `counted`

    @property
    def matrix(self) -> Matrix:
        return joined(self.weight.detach(), self.up)


class PairStats(NamedTuple):
    outputs: PairOutputs
    state: Tensor  # [N, STATE] float64
    sums: Tensor  # [N, 2] float64; [0, 2] without a mix
    kept: Tensor  # logits, see LogitStore
    teacher_kept: Tensor


class _Saved(NamedTuple):
    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    student: Transform
    teacher: TeacherChain
    mask: Tensor | None
    measure: Measure
    tiling: Tiling
    teacher_tiling: Tiling
    shard: Shard
    up: Tensor | None
    places: Tensor | None
    state: Tensor
    sums: Tensor
    kept: Tensor
    teacher_kept: Tensor


class PairHeadGradients(NamedTuple):
    """Empty where none is asked for."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    up: Tensor  # float32, or float64


def _active(given: _Given) -> tuple[PairedRows, Tensor | None]:
    """The rows where the mask is true, without their tiles, and their places."""
    chains = given.student, given.teacher
    rows, index = active(
        given.measure.rows(OP, len(given.hidden), given.hidden, given.mask, *chains),
        given.tiling, given.places,
    )  # fmt: skip
    assert isinstance(rows, PairedRows)
    return rows, index


def _tiles(
    hidden: Tensor, weight: Tensor, tiling: Tiling, kept: Tensor, rows: PairedRows,
    index: Tensor | None, *, filled: bool,
) -> HeadTiles:  # fmt: skip
    operand = tiling.operand(hidden.detach(), index)
    store = LogitStore(kept, rows.n, tiling)
    return HeadTiles.of(operand, weight.detach(), store, rows.backend, filled=filled)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student: Transform,
    teacher: TeacherChain,
    mask: Tensor | None,
    measure: Measure,
    tiling: Tiling,
    teacher_tiling: Tiling,
    shard: Shard,
    up: Tensor | None,
    places: Tensor | None,
) -> PairStats:
    given = _Given(
        hidden, weight, teacher_hidden, teacher_weight, student, teacher, mask, measure, tiling,
        teacher_tiling, shard, up, places,
    )  # fmt: skip
    n, (rows, index) = len(hidden), _active(given)
    kept, others = (
        memory.buffer(own.stored(n), own.dtype, hidden) for own in (tiling, teacher_tiling)
    )
    state = hidden.new_empty(n, STATE, dtype=torch.float64)
    sums = hidden.new_zeros(n if measure.mixed else 0, 2, dtype=torch.float64)
    own = state[: rows.n]
    tiles = _tiles(
        teacher_hidden, teacher_weight, teacher_tiling, others, rows, index, filled=False
    )
    rows = rows.beside(tiles, sums[: rows.n] if measure.mixed else None)
    operand, store = tiling.operand(hidden.detach(), index), LogitStore(kept, rows.n, tiling)
    matrix = given.matrix
    if len(weight):
        forward_tiles(operand, matrix, rows, own, store, extras=False)
    else:
        empty_pair_states(own)
    rows.merge_over(shard, own)
    if measure.mixed:
        student_tiles = HeadTiles.of(operand, matrix, store, rows.backend, filled=True)
        _mix(rows.beside(tiles._replace(filled=True), rows.sums), student_tiles, own, len(weight))
        rows.add_over(shard)
    out = rows.outputs(own, hidden, index)
    return PairStats(PairOutputs(**scattered(out._asdict(), index, n)), state, sums, kept, others)


def _mix(rows: PairedRows, student: HeadTiles, state: Tensor, vocab: int) -> None:
    """The pass that knows the normalisers: over kept tiles where they are."""
    tiling = student.store.tiling
    parts = [(c, rows.part(c), student.part(c)) for c in tiling.chunks(rows.n)]
    for start, stop in tiling.spans(vocab, split=tiling.whole_tiles(vocab)):
        for chunk, part, tiles in parts:
            part.mix(tiles(start, stop - start), state[chunk], start=start, first=start == 0)


def _forward_fake(hidden: Tensor, weight: Tensor, *given: object) -> PairStats:
    measure, tiling, teacher_tiling = given[-6:-3]
    assert isinstance(measure, Measure)
    assert isinstance(tiling, Tiling)
    assert isinstance(teacher_tiling, Tiling)
    n, wide = hidden.shape[0], torch.float64
    return PairStats(
        PairOutputs(*(hidden.new_empty(n, dtype=wide_dtype(hidden)) for _ in PairOutputs._fields)),
        hidden.new_empty(n, STATE, dtype=wide),
        hidden.new_empty(n if measure.mixed else 0, 2, dtype=wide),
        hidden.new_empty(tiling.stored(n), dtype=tiling.dtype),
        hidden.new_empty(teacher_tiling.stored(n), dtype=teacher_tiling.dtype),
    )


def _backward_kernel(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student: Transform,
    teacher: TeacherChain,
    mask: Tensor | None,
    measure: Measure,
    tiling: Tiling,
    teacher_tiling: Tiling,
    shard: Shard,
    up: Tensor | None,
    places: Tensor | None,
    state: Tensor,
    sums: Tensor,
    kept: Written,
    teacher_kept: Tensor,
    g: RowGradients,
    needs: list[bool],
) -> PairHeadGradients:
    given = _Given(
        hidden, weight, teacher_hidden, teacher_weight, student, teacher, mask, measure, tiling,
        teacher_tiling, shard, up, places,
    )  # fmt: skip
    rows, index = _active(given)
    n, g = rows.n, g if index is None else g.select(index)
    tiles = _tiles(
        teacher_hidden, teacher_weight, teacher_tiling, teacher_kept, rows, index, filled=True
    )
    rows = rows.beside(tiles, sums[:n] if measure.mixed else None)
    head = Head(hidden.detach(), given.matrix, tiling, shard, EXACT)
    f = Forward(rows, index, None, state[:n], LogitStore(kept, n, tiling), None)
    served = Served.of(f, g, EXACT)
    out = new_gradients(head, f, served, needs)
    if not served.none:
        backward(head, f, g, served, out)
    return PairHeadGradients(*(hidden.new_empty(0) if x is None else x for x in out))


def _backward_fake(hidden: Tensor, weight: Tensor, *given: object) -> PairHeadGradients:
    up, needs = given[-8], given[-1]
    assert up is None or isinstance(up, Tensor)
    assert isinstance(needs, list)
    wide = wide_dtype(hidden)
    return PairHeadGradients(
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        torch.empty_like(weight) if needs[1] else hidden.new_empty(0),
        hidden.new_empty(weight.shape[0], dtype=wide) if needs[2] else hidden.new_empty(0),
        hidden.new_empty(0) if up is None else torch.empty_like(up, dtype=wide),
    )


_backward_op = register("linear_pairs_backward", _backward_kernel, _backward_fake)


def _save(given: _Given, out: PairStats) -> _Saved:
    return _Saved(*given, *out[1:])


def _backward(saved: _Saved, upstream: PairStats, needs: Needs) -> dict[str, Tensor | None]:
    names = ("hidden", "weight", "student.bias")
    needed = [needs(name) for name in names]
    g = RowGradients.of(upstream.outputs.divergence, upstream.outputs.entropy, None)
    *gradients, d_up = _backward_op(*saved, g, needed)
    found = {
        name: gradient if need else None
        for name, gradient, need in zip(names, gradients, needed, strict=True)
    }
    return found if saved.up is None else {**found, "up": d_up.to(saved.up.dtype)}


linear_pairs = register(
    "linear_pairs",
    _forward,
    _forward_fake,
    # a backward of kept logits writes over them
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: True),
)
