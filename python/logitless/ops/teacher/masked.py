"""Divergences of rows with and without a set of tokens: each kind is served apart, and joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.head.inputs import HeadInputs
from logitless.ops.head.masked import require_sets, set_values
from logitless.ops.rows.arguments import Transform
from logitless.ops.rows.masked import entries_of, kept_entries
from logitless.ops.rows.outputs import scattered
from logitless.ops.rows.sets import MaskedRows, RowSets, biased
from logitless.ops.sharding.shard import Shard
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

    def entries(sets: RowSets, named: Tensor | None) -> tuple[Tensor, Tensor]:
        both = (logits, pair.student), (teacher_logits, pair.teacher)
        own, other = (biased(entries_of(x, sets), sets, chain.bias) for x, chain in both)
        return own, other

    return _joined(
        pair, sampling_mask, lambda dense, _: dense.of_logits(logits, teacher_logits, shard),
        entries, shard, logits.shape[-1], logits.device,
    )  # fmt: skip


def masked_of_heads(
    pair: Pair,
    student: HeadInputs,
    teacher: HeadInputs,
    sampling_mask: SamplingMask,
    shard: Shard,
    *,
    weight_rows: bool,
) -> dict[str, Tensor]:
    """Flat results of two heads."""
    if registry.get(pair.measure.backend).full_divergence is not None:
        both = student.full_logits(), teacher.full_logits()
        return masked_of_logits(pair, *both, sampling_mask, shard)

    def entries(sets: RowSets, named: Tensor | None) -> tuple[Tensor, Tensor]:
        own, other = (x._replace(shard=shard) for x in (student, teacher))
        values = set_values(own, sets, weight_rows, named)
        with torch.no_grad():
            return values, set_values(other, sets)

    def whole(dense: Pair, places: Tensor) -> dict[str, Tensor]:
        return dense.of_heads(student, teacher, shard, places)

    return _joined(
        pair, sampling_mask, whole, entries, shard, len(student.weight), student.weight.device,
        weight_rows=weight_rows,
    )  # fmt: skip


def _joined(
    pair: Pair,
    sampling_mask: SamplingMask,
    # of the whole vocabulary, [N], and where its mask is true
    whole: Callable[[Pair, Tensor], dict[str, Tensor]],
    # the logits of both at sets, whose ids are named
    entries: Callable[[RowSets, Tensor | None], tuple[Tensor, Tensor]],
    shard: Shard,
    width: int,
    device: torch.device,
    *,
    weight_rows: bool = False,
) -> dict[str, Tensor]:  # [N]
    on_device = registry.get(pair.measure.backend).asynchronous
    masked = MaskedRows.among(
        sampling_mask, None, pair.mask, shard, width, device, name_ids=weight_rows and on_device
    )
    sets, others = masked.sets, masked.others
    if weight_rows:
        require_sets(masked)
    # of no row at all it is by sets, whose results are differentiable like others
    if not len(sets.places) and others is not None:
        return whole(pair._replace(mask=others.mask), others.places)
    chains = _of_sets(pair.student, sets), pair.teacher.of_rows(sets.places).on(shard)
    values = entries(sets, masked.named)
    some = set_pairs(*values, sets, *chains, pair.measure, shard).outputs._asdict()
    if others is None:
        return scattered(some, sets.places, len(sampling_mask))
    base = whole(pair._replace(mask=others.mask), others.places)
    return {name: base[name].index_copy(0, sets.places, some[name]) for name in some}


def _of_sets(chain: Transform, sets: RowSets) -> Transform:
    """That of the rows that have a set; values hold their bias already."""
    scale = None if chain.row_scale is None else chain.row_scale[sets.places]
    return chain._replace(bias=None, row_scale=scale)
