"""torch op over the logits of sets of tokens: the statistics of rows renormalised over theirs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.base import SetKernels
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.inputs.records import changed
from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.rows.arguments import DIFFERENTIATED, RowArguments, RowGradients, RowOutputs
from logitless.ops.rows.op import RowStats
from logitless.ops.rows.outputs import empty_outputs, requested
from logitless.ops.sharding.shard import Shard
from logitless.ops.torch_op import Autograd, Needs, register

OP = "sampling_mask"


class RowSets(NamedTuple):
    """Rows that have a set, and their ids on this rank."""

    places: Tensor  # [n] int64 among the rows of the call
    offsets: Tensor  # [n + 1] int64
    columns: Tensor  # [entries] int32 counted from this rank's first, ascending within a row

    @property
    def of_entry(self) -> Tensor:
        """[entries] int64: the row of each, counted among these."""
        counts = self.offsets.diff()
        each = torch.arange(len(counts), device=counts.device)
        return each.repeat_interleave(counts, output_size=len(self.columns))


class OtherRows(NamedTuple):
    """Those of a call's mask without a set."""

    mask: Tensor  # [N] bool
    places: Tensor  # int64: where it is true, known to the host


class MaskedRows(NamedTuple):
    """The rows of a call by how they are served."""

    sets: RowSets
    others: OtherRows | None  # None: there are none
    # int64, ascending: this rank's ids in any set, of a device; None: nobody has asked for them
    named: Tensor | None

    @classmethod
    def of(
        cls,
        sampling_mask: SamplingMask,
        rows: RowArguments,
        shard: Shard,
        width: int,
        *,
        weight_rows: bool = False,
    ) -> MaskedRows:
        # what is wrong with a device's targets its kernels find
        on_host = not registry.get(rows.backend).asynchronous
        targets, device = rows.targets if on_host else None, rows.targets.device
        return cls.among(
            sampling_mask, targets, rows.mask, shard, width, device,
            name_ids=weight_rows and not on_host,
        )  # fmt: skip

    @classmethod
    def among(
        cls,
        sampling_mask: SamplingMask,
        targets: Tensor | None,  # [N]; None: there are none
        mask: Tensor | None,  # [N]
        shard: Shard,
        width: int,
        device: torch.device,
        *,
        name_ids: bool = False,
    ) -> MaskedRows:
        """Sets are sorted and checked on the host, which waits for a mask that is on a device and
        then knows all sizes."""
        n, wanted = len(sampling_mask), None if targets is None else targets.numpy()
        others = np.ones(n, bool) if mask is None else mask.cpu().numpy().copy()
        found = sampling_mask.sets(wanted, others, shard.vocab(width))
        others[found.places] = False
        if shard.group:
            found = found.within(shard.start, shard.start + width)
        sets = RowSets(*(sent(array, device) for array in found))
        places = np.flatnonzero(others)
        apart = OtherRows(sent(others, device), sent(places, device)) if len(places) else None
        return cls(sets, apart, sent(found.named(width), device) if name_ids else None)


def sent(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """On a device, as soon as it gets there: nobody waits."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


class _Arguments(NamedTuple):
    values: Tensor
    sets: RowSets
    rows: RowArguments
    extras: bool
    vocab: int
    shard: Shard


class _Saved(NamedTuple):
    values: Tensor
    sets: RowSets
    rows: RowArguments
    state: Tensor
    shard: Shard


def kernels_of(rows: Rows) -> SetKernels:
    assert rows.backend.sets is not None
    return rows.backend.sets


def rows_of_sets(rows: RowArguments, sets: RowSets) -> RowArguments:
    """The rows that have a set; values hold their bias already."""
    scale = None if rows.row_scale is None else rows.row_scale[sets.places]
    return rows._replace(targets=rows.targets[sets.places], mask=None, bias=None, row_scale=scale)


def biased(values: Tensor, sets: RowSets, bias: Tensor | None) -> Tensor:
    return values if bias is None else values + bias.index_select(0, sets.columns)


def _forward(
    values: Tensor,  # [entries] logits with bias, float32 or float64
    sets: RowSets,
    rows: RowArguments,  # of the rows that have a set
    extras: bool,
    vocab: int,  # of all shards
    shard: Shard,
) -> RowStats:
    of_sets = changed(rows.rows(OP), of_sets=True)
    out = empty_outputs(of_sets.n, extras, values)
    state = values.new_empty(of_sets.n, STATE, dtype=torch.float64)
    kernels_of(of_sets).forward(
        shard.local(of_sets), *sets[1:], values.detach(), state=state, extras=extras
    )
    shard.merge(state, of_sets)
    of_sets.finalize(state, vocab, row_ids=sets.places, **requested(out, extras))
    return RowStats(RowOutputs(**out), state)


def _forward_fake(
    values: Tensor, sets: RowSets, rows: RowArguments, extras: bool, vocab: int, shard: Shard
) -> RowStats:
    n = rows.targets.shape[0]
    state = values.new_empty(n, STATE, dtype=torch.float64)
    return RowStats(RowOutputs(**empty_outputs(n, extras, values)), state)


def _backward_kernel(
    values: Tensor, sets: RowSets, rows: RowArguments, state: Tensor, shard: Shard, g: RowGradients
) -> Tensor:
    of_sets = rows.rows(OP)
    gradient = torch.empty_like(values)
    kernels_of(of_sets).gradient(
        shard.local(of_sets), *sets[1:], values.detach(), state=state, gradient=gradient,
        **g.kernel_arguments,
    )  # fmt: skip
    return gradient


_backward_op = register(
    "set_stats_backward", _backward_kernel, lambda values, *_: torch.empty_like(values)
)


def _save(given: _Arguments, out: RowStats) -> _Saved:
    return _Saved(given.values, given.sets, given.rows, out.state, given.shard)


def _backward(saved: _Saved, upstream: RowStats, needs: Needs) -> dict[str, Tensor | None]:
    return {"values": _backward_op(*saved, RowGradients.of(*upstream.outputs[:3]))}


set_stats = register(
    "set_stats",
    _forward,
    _forward_fake,
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: False),
)
