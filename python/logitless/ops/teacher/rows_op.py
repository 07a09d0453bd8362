"""torch op of two given logits, [N, V] or [B, T, V]: a pass forward, of a mix two; one backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.row_kernels.rows import STATE
from logitless.ops.rows.arguments import Transform
from logitless.ops.sharding.shard import Shard
from logitless.ops.teacher.chain import TeacherChain
from logitless.ops.teacher.pairs import (
    DIFFERENTIATED,
    Given,
    Measure,
    PairOutputs,
    empty_pair_states,
)
from logitless.ops.torch_op import Autograd, Needs, register

OP = "divergence"


class _Given(NamedTuple):
    logits: Tensor
    teacher_logits: Tensor
    student: Transform
    teacher: TeacherChain
    mask: Tensor | None
    measure: Measure
    shard: Shard


class PairStats(NamedTuple):
    outputs: PairOutputs
    state: Tensor  # [N, STATE] float64
    sums: Tensor  # [N, 2] float64; [0, 2] without a mix


class _Saved(NamedTuple):
    logits: Tensor
    teacher_logits: Tensor
    student: Transform
    teacher: TeacherChain
    mask: Tensor | None
    measure: Measure
    state: Tensor
    sums: Tensor


def _count(logits: Tensor) -> int:
    return logits.shape[:-1].numel()


def _forward(
    logits: Tensor,
    teacher_logits: Tensor,
    student: Transform,
    teacher: TeacherChain,
    mask: Tensor | None,
    measure: Measure,
    shard: Shard,
) -> PairStats:
    n, width, like = _count(logits), logits.shape[-1], logits.detach()
    state = like.new_empty(n, STATE, dtype=torch.float64)
    sums = like.new_zeros(n if measure.mixed else 0, 2, dtype=torch.float64)
    rows = measure.rows(OP, n, like, mask, student, teacher)
    rows = rows.beside(Given(teacher_logits.detach()), sums if measure.mixed else None)
    if width:
        rows.forward(like, state)
    else:
        empty_pair_states(state)
    rows.merge_over(shard, state)
    if measure.mixed:
        if width:
            rows.mix(like, state)
        rows.add_over(shard)
    return PairStats(rows.outputs(state, like), state, sums)


def _forward_fake(logits: Tensor, teacher_logits: Tensor, *given: object) -> PairStats:
    measure = given[-2]
    assert isinstance(measure, Measure)
    n, wide = _count(logits), torch.float64
    dtype = wide if logits.dtype == wide else torch.float32
    return PairStats(
        PairOutputs(*(logits.new_empty(n, dtype=dtype) for _ in PairOutputs._fields)),
        logits.new_empty(n, STATE, dtype=wide),
        logits.new_empty(n if measure.mixed else 0, 2, dtype=wide),
    )


def _backward_kernel(
    logits: Tensor,
    teacher_logits: Tensor,
    student: Transform,
    teacher: TeacherChain,
    mask: Tensor | None,
    measure: Measure,
    state: Tensor,
    sums: Tensor,
    g_divergence: Tensor | None,
    g_entropy: Tensor | None,
) -> Tensor:
    gradient = memory.contiguous_like(logits)
    if logits.shape[-1]:
        rows = measure.rows(OP, _count(logits), logits, mask, student, teacher)
        rows = rows.beside(Given(teacher_logits.detach()), sums if measure.mixed else None)
        rows.gradient(logits.detach(), state, gradient, g_logp=g_divergence, g_entropy=g_entropy)
    return gradient


_backward_op = register(
    "row_pairs_backward",
    _backward_kernel,
    lambda logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
)


def _save(given: _Given, out: PairStats) -> _Saved:
    return _Saved(*given[:-1], out.state, out.sums)


def _backward(saved: _Saved, upstream: PairStats, needs: Needs) -> dict[str, Tensor | None]:
    out = upstream.outputs
    g = (None if x is None else x.to(torch.float64).contiguous() for x in (out[0], out[1]))
    gradient = _backward_op(*saved, *g)
    found: dict[str, Tensor | None] = {"logits": gradient}
    if needs("student.bias"):
        assert saved.student.bias is not None
        flat = gradient.flatten(0, -2)
        found["student.bias"] = flat.sum(0, dtype=saved.student.bias.dtype)
    return found


row_pairs = register(
    "row_pairs",
    _forward,
    _forward_fake,
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: False),
)
