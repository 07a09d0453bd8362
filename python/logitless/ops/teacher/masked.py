"""Divergences of rows with and without a set of tokens: each kind is served apart, and joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.inputs.options import ComputeOptions
from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.head.inputs import HeadInputs
from logitless.ops.head.masked import set_values
from logitless.ops.rows.arguments import RowArguments, Transform
from logitless.ops.rows.masked import entries_of, kept_entries
from logitless.ops.rows.outputs import scattered
from logitless.ops.rows.sets import MaskedRows, RowSets, biased
from logitless.ops.sharding.shard import Shard
from logitless.ops.teacher.chain import TeacherChain
from logitless.ops.teacher.sets_op import set_pairs

if TYPE_CHECKING:
    from logitless.ops.teacher.calls import Pair


def masked_of_logits(
    pair: Pair, logits: Tensor, teacher_logits: Tensor, sampling_mask: SamplingMask, shard: Shard
) -> dict[str, Tensor]:
    """Flat results of [N, V] or [B, T, V]."""
    teacher_logits, measure = teacher_logits.detach(), pair.measure
    eager = registry.get(measure.backend).full_divergence
    if eager is not None:
        rows = [x.reshape(-1, x.shape[-1]) for x in (logits, teacher_logits)]
        kept = kept_entries(rows[0], None, pair.mask, sampling_mask)
        return eager(*rows, *pair.eager_arguments, kept, pair.teacher.noise)

    def entries(sets: RowSets) -> tuple[Tensor, Tensor]:
        both = (logits, pair.student), (teacher_logits, pair.teacher)
        own, other = (biased(entries_of(x, sets), sets, chain.bias) for x, chain in both)
        return own, other

    return _joined(
        pair, sampling_mask, lambda dense: dense.of_logits(logits, teacher_logits, shard), entries,
        shard, logits.shape[-1], logits.device,
    )  # fmt: skip


def masked_of_heads(
    pair: Pair,
    student: tuple[Tensor, Tensor],  # hidden [N, H], weight [V, H]
    teacher: tuple[Tensor, Tensor],
    dtypes: tuple[torch.dtype, ...],
    compute: ComputeOptions,
    needs: tuple[bool, bool, bool],
    sampling_mask: SamplingMask,
    shard: Shard,
) -> dict[str, Tensor]:
    """Flat results of two heads."""
    if registry.get(pair.measure.backend).full_divergence is not None:
        own, other = pair.full_logits(student, teacher, dtypes)
        return masked_of_logits(pair, own, other, sampling_mask, shard)

    def entries(sets: RowSets) -> tuple[Tensor, Tensor]:
        def values(
            head: tuple[Tensor, Tensor], chain: Transform | TeacherChain, dtype: torch.dtype,
            needs: tuple[bool, bool, bool],
        ) -> Tensor:  # fmt: skip
            nobody = head[0].new_empty(0, dtype=torch.int64)
            rows = RowArguments(nobody, None, *chain[:5], pair.measure.backend)
            return set_values(HeadInputs(*head, rows, compute, dtype, needs, shard), sets)

        own = values(student, pair.student, dtypes[0], needs)
        with torch.no_grad():
            return own, values(teacher, pair.teacher, dtypes[1], (False,) * 3)

    def whole(dense: Pair) -> dict[str, Tensor]:
        return dense.of_heads(student, teacher, dtypes, compute, needs, shard)

    device = student[0].device
    return _joined(pair, sampling_mask, whole, entries, shard, len(student[1]), device)


def _joined(
    pair: Pair,
    sampling_mask: SamplingMask,
    whole: Callable[[Pair], dict[str, Tensor]],  # of the whole vocabulary, [N]
    entries: Callable[[RowSets], tuple[Tensor, Tensor]],  # the logits of both at sets
    shard: Shard,
    width: int,
    device: torch.device,
) -> dict[str, Tensor]:  # [N]
    masked = MaskedRows.among(sampling_mask, None, pair.mask, shard, width, device)
    sets, others = masked.sets, masked.others
    # also of no row at all, whose results are differentiable like others
    if not len(sets.places):
        return whole(pair)
    chains = _of_sets(pair.student, sets), pair.teacher.of_rows(sets.places).on(shard)
    some = set_pairs(*entries(sets), sets, *chains, pair.measure, shard).outputs._asdict()
    if others is None:
        return scattered(some, sets.places, len(sampling_mask))
    base = whole(pair._replace(mask=others))
    return {name: base[name].index_copy(0, sets.places, some[name]) for name in some}


def _of_sets(chain: Transform, sets: RowSets) -> Transform:
    """That of the rows that have a set; values hold their bias already."""
    scale = None if chain.row_scale is None else chain.row_scale[sets.places]
    return chain._replace(bias=None, row_scale=scale)
