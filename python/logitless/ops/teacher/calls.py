"""A checked call on torch tensors, by kernels or in plain torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.forked import refuse_lost_threads
from logitless.inputs.naming import of_teacher
from logitless.inputs.options import ComputeOptions
from logitless.ops.head.adapter.low_rank import LowRank
from logitless.ops.head.backward import counted
from logitless.ops.head.inputs import HeadInputs, realised_dtype
from logitless.ops.head.planner.plan import Plan, cached_plan
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.arguments import RowArguments, Transform, transform
from logitless.ops.sharding.rendezvous import Facts, fingerprint, head_facts
from logitless.ops.sharding.shard import Shard
from logitless.ops.symbols import fixed
from logitless.ops.teacher.chain import TeacherChain
from logitless.ops.teacher.head_op import linear_pairs
from logitless.ops.teacher.noise import Noise
from logitless.ops.teacher.pairs import Measure
from logitless.ops.teacher.parse import Heads
from logitless.ops.teacher.rows_op import row_pairs


class Pair(NamedTuple):
    """What a call knows beside its logits, or the heads that they come from."""

    student: Transform
    teacher: TeacherChain
    mask: Tensor | None  # [N]
    measure: Measure

    @classmethod
    def of(
        cls, op: str, heads: Heads, mask: Tensor | None, like: Tensor, kind: str, beta: float,
        backend: str, noise: Noise | None = None,
    ) -> Pair:  # fmt: skip
        look, wide = not registry.get(backend).asynchronous, like.dtype == torch.float64
        student = transform(op, heads.student, mask, wide, look=look)
        with of_teacher():
            teacher = transform(op, heads.teacher, mask, wide, look=look)
        if teacher.bias is not None:
            teacher = teacher._replace(bias=teacher.bias.detach())
        flat = None if mask is None else mask.reshape(-1).contiguous()
        chain = TeacherChain(*teacher)
        if noise is not None:
            n = like.shape[:-1].numel()
            chain = chain._replace(**noise.of_tensors(n, flat, like.device))
        return cls(student, chain, flat, Measure(kind, beta, backend))

    @property
    def eager_arguments(self) -> tuple[Any, ...]:
        """What a backend that has full logits takes beside them."""
        measure = self.measure
        return self.mask, self.student, self.teacher.transform, measure.kind, measure.beta

    def of_logits(self, logits: Tensor, teacher_logits: Tensor, shard: Shard) -> dict[str, Tensor]:
        """Flat results of [N, V] or [B, T, V]."""
        teacher_logits, measure = teacher_logits.detach(), self.measure
        eager = registry.get(measure.backend).full_divergence
        if eager is not None:
            rows = (x.reshape(-1, x.shape[-1]) for x in (logits, teacher_logits))
            return eager(*rows, *self.eager_arguments, None, self.teacher.noise)
        dense = (x if x.stride(-1) == 1 else x.contiguous() for x in (logits, teacher_logits))
        own = self._replace(teacher=self.teacher.on(shard))
        found: dict[str, Tensor] = row_pairs(*dense, *own, shard).outputs._asdict()
        return found

    def heads(
        self,
        student: tuple[Tensor, Tensor],  # hidden [N, H], weight [V, H]
        teacher: tuple[Tensor, Tensor],
        compute: ComputeOptions,
        needs: tuple[bool, bool, bool],  # what autograd will ask for of hidden, weight, bias
        adapter: LowRank | None,  # of the student's
    ) -> tuple[HeadInputs, HeadInputs]:
        """Both as a head call takes its arrays, of rows without a target."""
        nobody, asked = student[0].new_empty(0, dtype=torch.int64), compute.logits_dtype

        def inputs(
            head: tuple[Tensor, Tensor], chain: Transform, needs: tuple[bool, bool, bool],
            adapter: LowRank | None = None,
        ) -> HeadInputs:  # fmt: skip
            rows = RowArguments(nobody, None, *chain, self.measure.backend)
            dtype = realised_dtype(asked, head[0], self.measure.backend)
            return HeadInputs(*head, rows, compute, dtype, needs, adapter=adapter)

        own, detached = inputs(student, self.student, needs, adapter), [x.detach() for x in teacher]
        with of_teacher():
            other = inputs((detached[0], detached[1]), self.teacher.transform, (False,) * 3)
        return own, other

    def of_heads(
        self,
        student: HeadInputs,
        teacher: HeadInputs,
        shard: Shard,
        places: Tensor | None = None,  # where the mask is true, if the host knows
    ) -> dict[str, Tensor]:
        """Flat results of two heads."""
        if registry.get(self.measure.backend).full_divergence is not None:
            return self.of_logits(student.full_logits(), teacher.full_logits(), shard)
        tilings = self._tilings(student, teacher, shard)
        own = self._replace(teacher=self.teacher.on(shard))
        if places is None:
            places = counted(self.mask, tilings[0], student.backend)
        found: dict[str, Tensor] = linear_pairs(
            student.operand, student.weight, teacher.hidden, teacher.weight, *own, *tilings, shard,
            student.up, places,
        ).outputs._asdict()  # fmt: skip
        return found

    def _tilings(
        self, student: HeadInputs, teacher: HeadInputs, shard: Shard
    ) -> tuple[Tiling, Tiling]:
        """Of one plan: that of the larger head, with half of the budget."""
        both, needs = (student, teacher), student.needs
        hidden, vocab = student.hidden, fixed(student.weight.shape[0])
        width = max(fixed(x.hidden.shape[1]) for x in both)
        wider, logits = (
            max(dtypes, key=lambda dtype: dtype.itemsize)
            for dtypes in ([x.hidden.dtype for x in both], [x.logits_dtype for x in both])
        )
        gradients = tuple(
            [name for name, need in zip(("hidden", "weight"), needs, strict=False) if need]
        )
        rank = 0 if student.adapter is None else fixed(student.adapter.rank)
        plan = _plan(
            self.measure.backend, hidden.device, fixed(hidden.shape[0]), width,
            shard.widest(vocab), wider, logits, fixed(student.compute.memory_budget), gradients,
            # a mix is the second pass of a forward
            any(needs) or self.measure.mixed, rank, fixed(student.compute.active_capacity),
        )  # fmt: skip
        own, other = (Tiling.of(plan, vocab, x.hidden.dtype, x.logits_dtype) for x in both)
        return own, other


# A compiled graph holds the plan as a constant: it follows from what the graph is guarded on.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plan(
    backend: str,
    device: torch.device,
    n: int,
    width: int,
    vocab: int,
    dtype: torch.dtype,
    logits: torch.dtype,
    budget: int | str | None,
    gradients: tuple[str, ...],
    backward: bool,
    rank: int,
    capacity: int | None,
) -> Plan:
    refuse_lost_threads()
    return cached_plan(
        registry.get(backend).machine(device), n, width, vocab, dtype, budget, logits_dtype=logits,
        gradients=gradients, backward=backward, one_pass=False, heads=2, adapter_rank=rank,
        active_capacity=capacity,
    )  # fmt: skip


def pair_facts(heads: Heads, source: Tensor, pair: Pair, shape: tuple[int, ...]) -> Facts:
    """What must be the same on every rank."""
    mask = pair.mask
    return (
        *head_facts(heads.student),
        *((f"teacher's {name}", value) for name, value in head_facts(heads.teacher)),
        ("the dtype", str(source.dtype)),
        ("the shape of the tokens", [int(n) for n in shape]),
        ("mask (its checksum)", -1 if mask is None else fingerprint(mask)),
        ("kind", pair.measure.kind),
        ("beta", pair.measure.beta),
    )


def facts_of_student(student: HeadInputs) -> Facts:
    of: Any = ("which of hidden, weight and bias require grad", list(student.needs))
    return (of, *student.facts)
