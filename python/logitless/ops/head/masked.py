"""Statistics of a head call whose rows have sets of tokens that they were sampled from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.head.planner.plan import parse_bytes
from logitless.ops.head.planner.sets import SetProblem
from logitless.ops.head.sets import SetProducts, set_logits
from logitless.ops.head.statistics import statistics
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.masked import eager_masked_stats, joined
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.rows.sets import MaskedRows, RowSets, biased, rows_of_sets, set_stats

if TYPE_CHECKING:
    from logitless.ops.head.inputs import HeadInputs
    from logitless.ops.rows.arguments import RowArguments, RowOutputs


def masked_statistics(
    inputs: HeadInputs,
    sampling_mask: SamplingMask,
    shape: tuple[int, ...],
    extras: tuple[str, ...] = (),
    *,
    weight_rows: bool = False,
) -> TokenStats:
    eager, rows = inputs.backend.statistics, inputs.rows
    if eager is not None:
        logits = inputs.full_logits()
        return eager_masked_stats(eager, logits, rows, sampling_mask, shape, extras)
    n, _, width = inputs.sizes
    masked = MaskedRows.of(sampling_mask, rows, inputs.shard, width, weight_rows=weight_rows)
    sets = masked.sets
    if weight_rows:
        require_sets(masked)

    def whole(
        served: RowArguments, places: Tensor | None, of_rows: tuple[str, ...], gradients: bool
    ) -> TokenStats:
        given = inputs._replace(rows=served, places=places)
        if gradients:
            return statistics(given, (n,), of_rows)
        with torch.no_grad():
            return statistics(given._replace(needs=(False,) * 3), (n,), of_rows)

    def of_sets(with_extras: bool) -> RowOutputs:
        return set_statistics(inputs, sets, with_extras, weight_rows, masked.named)

    return joined(masked, rows, shape, extras, whole, of_sets)


def require_sets(masked: MaskedRows) -> None:
    """What a gradient of weight as rows needs."""
    if masked.others is not None:
        row = int(masked.others.places[0])
        raise ValueError(
            f"weight_grad='rows' needs a set of tokens for every row of the mask, got none in "
            f"sampling_mask for row {row}"
        )


def set_statistics(
    inputs: HeadInputs,
    sets: RowSets,
    extras: bool = False,
    weight_rows: bool = False,
    named: Tensor | None = None,  # as in `MaskedRows`
) -> RowOutputs:  # [n]
    """Of the rows that have a set, whose ids are checked."""
    rows, shard = inputs.rows, inputs.shard
    values = set_values(inputs, sets, weight_rows, named)
    own, vocab = rows_of_sets(rows, sets), shard.vocab(inputs.sizes[2])
    out: RowOutputs = set_stats(values, sets, own, extras, vocab, shard).outputs
    return out


def set_values(
    inputs: HeadInputs, sets: RowSets, weight_rows: bool = False, named: Tensor | None = None
) -> Tensor:
    """Their logits with bias, [entries] float32 or float64."""
    how, tiling = _products(inputs, sets, weight_rows)
    values = set_logits(inputs.hidden, inputs.weight, sets, how, tiling, inputs.shard, named)
    if inputs.adapter is not None:
        low, up = inputs.adapter
        how, up = how._replace(weight_rows=False), up.to(low.dtype)
        values = values + set_logits(low, up, sets, how, tiling, inputs.shard, None)
    return biased(values, sets, inputs.rows.bias)


def _products(inputs: HeadInputs, sets: RowSets, weight_rows: bool) -> tuple[SetProducts, Tiling]:
    """Gathered where gradients are wanted as rows, and where a row's bits may not depend on how
    many others there are."""
    _, width, vocab = inputs.sizes
    compute, backend = inputs.compute, inputs.backend
    dtype = str(inputs.hidden.dtype).removeprefix("torch.")
    problem = SetProblem(len(sets.places), len(sets.columns), width, vocab, dtype)
    machine = backend.machine(inputs.hidden.device)
    dense = not (weight_rows or compute.batch_invariant) and problem.pays_dense(machine)
    how = SetProducts(inputs.rows.backend, dense, weight_rows)
    if dense:
        some = inputs._replace(hidden=inputs.hidden[: len(sets.places)], adapter=None)
        plan = some.plan(one_pass=False)
        return how, inputs.tiling(plan)._replace(kept=0)
    budget = compute.memory_budget
    problem.check(None if budget is None else parse_bytes(budget), any(inputs.needs))
    return how, Tiling.asked("", inputs.hidden.dtype, inputs.logits_dtype)
