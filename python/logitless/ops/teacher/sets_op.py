"""torch op of the entries of sets: a student's softmax and a teacher's, renormalised over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends.row_kernels.rows import STATE
from logitless.ops.rows.arguments import Transform
from logitless.ops.rows.sets import RowSets, kernels_of
from logitless.ops.sharding.shard import Shard
from logitless.ops.teacher.chain import TeacherChain
from logitless.ops.teacher.pairs import DIFFERENTIATED, Measure, PairedRows, PairOutputs
from logitless.ops.teacher.rows_op import OP, PairStats
from logitless.ops.torch_op import Autograd, Needs, register


class _Given(NamedTuple):
    values: Tensor  # [entries] logits with bias, float32 or float64
    others: Tensor  # the teacher's at the same entries
    sets: RowSets
    student: Transform  # of the rows that have a set, and so the teacher's: without a bias
    teacher: TeacherChain
    measure: Measure
    shard: Shard

    def rows(self, sums: Tensor) -> PairedRows:
        chains, n = (self.student, self.teacher), len(self.sets.places)
        rows = self.measure.rows(OP, n, self.values, None, *chains)
        return rows.beside(None, sums if self.measure.mixed else None)

    @property
    def entries(self) -> tuple[Tensor, ...]:
        """As the kernels take them."""
        return *self.sets[1:], self.values.detach(), self.others.detach()


class _Saved(NamedTuple):
    values: Tensor
    others: Tensor
    sets: RowSets
    student: Transform
    teacher: TeacherChain
    measure: Measure
    shard: Shard
    state: Tensor
    sums: Tensor


def _forward(
    values: Tensor,
    others: Tensor,
    sets: RowSets,
    student: Transform,
    teacher: TeacherChain,
    measure: Measure,
    shard: Shard,
) -> PairStats:
    given = _Given(values, others, sets, student, teacher, measure, shard)
    n = len(sets.places)
    state = values.new_empty(n, STATE, dtype=torch.float64)
    sums = values.new_zeros(n if measure.mixed else 0, 2, dtype=torch.float64)
    rows = given.rows(sums)
    kernels = kernels_of(rows)
    kernels.pair_forward(rows, rows.teacher, *given.entries, state=state)
    rows.merge_over(shard, state)
    if measure.mixed:
        beta = measure.beta
        kernels.pair_mix(rows, rows.teacher, *given.entries, state=state, sums=sums, beta=beta)
        rows.add_over(shard)
    return PairStats(rows.outputs(state, values, sets.places), state, sums)


def _forward_fake(values: Tensor, others: Tensor, sets: RowSets, *given: object) -> PairStats:
    measure = given[-2]
    assert isinstance(measure, Measure)
    n, wide = sets.places.shape[0], torch.float64
    return PairStats(
        PairOutputs(*(values.new_empty(n) for _ in PairOutputs._fields)),
        values.new_empty(n, STATE, dtype=wide),
        values.new_empty(n if measure.mixed else 0, 2, dtype=wide),
    )


def _backward_kernel(
    values: Tensor,
    others: Tensor,
    sets: RowSets,
    student: Transform,
    teacher: TeacherChain,
    measure: Measure,
    shard: Shard,
    state: Tensor,
    sums: Tensor,
    g_divergence: Tensor | None,
    g_entropy: Tensor | None,
) -> Tensor:
    given = _Given(values, others, sets, student, teacher, measure, shard)
    rows, gradient = given.rows(sums), torch.empty_like(values)
    kernels_of(rows).pair_gradient(
        rows, rows.teacher, *given.entries, state=state, out=gradient, kind=measure.kind,
        beta=measure.beta, sums=rows.sums, g_divergence=g_divergence, g_entropy=g_entropy,
    )  # fmt: skip
    return gradient


_backward_op = register(
    "set_pairs_backward", _backward_kernel, lambda values, *_: torch.empty_like(values)
)


def _save(given: _Given, out: PairStats) -> _Saved:
    return _Saved(*given, out.state, out.sums)


def _backward(saved: _Saved, upstream: PairStats, needs: Needs) -> dict[str, Tensor | None]:
    out = upstream.outputs
    g = (None if x is None else x.to(torch.float64).contiguous() for x in (out[0], out[1]))
    return {"values": _backward_op(*saved, *g)}


set_pairs = register(
    "set_pairs",
    _forward,
    _forward_fake,
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: False),
)
