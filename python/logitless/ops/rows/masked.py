"""Rows with and without a set of tokens in one call: each kind is served apart, and joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logitless.inputs.options import DROPPED, FULL
from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.rows.op import row_stats
from logitless.ops.rows.outputs import (
    DIFFERENTIABLE,
    TokenStats,
    requested,
    scattered,
    to_stats,
    with_nothing_dropped,
)
from logitless.ops.rows.sets import MaskedRows, RowSets, biased, rows_of_sets, set_stats
from logitless.ops.sharding.rendezvous import Facts, fingerprint
from logitless.ops.sharding.shard import Shard

if TYPE_CHECKING:
    from logitless.ops.rows.arguments import RowArguments, RowOutputs

# (rows, where their mask is true if the host knows, extras, whether there are gradients) ->
# statistics of the whole vocabulary, [N]
Whole = Callable[["RowArguments", Tensor | None, tuple[str, ...], bool], TokenStats]
# (whether there are extras) -> those of the rows that have a set, [n]
OfSets = Callable[[bool], "RowOutputs"]


def joined(
    masked: MaskedRows,
    rows: RowArguments,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
    whole: Whole,
    of_sets: OfSets,
) -> TokenStats:
    """The statistics of all rows. The whole vocabulary is asked for where rows have no set, or
    where extras are about it: rows with a set then get no gradient from it."""
    of_rows = tuple([name for name in extras if name not in (*FULL, *DROPPED)])
    places, others = masked.sets.places, masked.others
    asks, base = any(name in FULL for name in extras), None
    if asks or others is not None:
        served, known = rows, None
        if others is not None and not asks:
            served, known = rows._replace(mask=others.mask), others.places
        base = whole(served, known, of_rows, others is not None)
    stats = base
    # also of no row at all, whose results are differentiable like others
    if len(places) or others is None:
        found = of_sets(bool(of_rows))._asdict()
        stats = _joined(base, found, places, len(rows.targets), of_rows)
    assert stats is not None
    full = {} if not asks or base is None else _full(base, stats, rows, masked)
    named = with_nothing_dropped(
        stats._replace(extras=stats.extras | full), (*of_rows, *full, *DROPPED)
    ).extras
    flat = (*stats[:3], *(named[name] for name in extras))
    logp, entropy, lse, *more = (x.reshape(shape) for x in flat)
    return TokenStats(logp, entropy, lse, dict(zip(extras, more, strict=True)))


def _joined(
    base: TokenStats | None,
    found: dict[str, Tensor],
    places: Tensor,
    n: int,
    of_rows: tuple[str, ...],
) -> TokenStats:
    if base is None:
        return to_stats(scattered(found, places, n), (n,), of_rows)
    flat = dict(zip(DIFFERENTIABLE, base[:3], strict=True)) | base.extras
    named = requested(found, bool(of_rows))
    both = {name: x.index_copy(0, places, named[name].to(x.dtype)) for name, x in flat.items()}
    return to_stats(both, (n,), of_rows)


def _full(
    base: TokenStats, stats: TokenStats, rows: RowArguments, masked: MaskedRows
) -> dict[str, Tensor]:
    places, lse = masked.sets.places, base.lse.detach()
    mass = torch.ones_like(lse) if rows.mask is None else rows.mask.to(lse.dtype)
    # Logits of the two may round differently.
    mass[places] = (stats.lse.detach() - lse)[places].exp().clamp(max=1)
    logp, entropy = base.logp.detach(), base.entropy.detach()
    return {"kept_mass": mass, "full_logp": logp, "full_entropy": entropy}


def masked_token_stats(
    logits: Tensor,  # [N, V] or [B, T, V]
    rows: RowArguments,
    sampling_mask: SamplingMask,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
    shard: Shard,
) -> TokenStats:
    """Of given logits: those of sets are gathered, and autograd scatters their gradient."""
    n, width = rows.targets.shape[0], logits.shape[-1]
    masked = MaskedRows.of(sampling_mask, rows, shard, width)
    sets = masked.sets

    def whole(
        served: RowArguments, places: Tensor | None, of_rows: tuple[str, ...], gradients: bool
    ) -> TokenStats:
        given = logits if gradients else logits.detach()
        out = row_stats(given, served, bool(of_rows), False, shard).outputs
        return to_stats(out._asdict(), (n,), of_rows)

    def of_sets(with_extras: bool) -> RowOutputs:
        values = biased(entries_of(logits, sets), sets, rows.bias)
        own = rows_of_sets(rows, sets)
        out: RowOutputs = set_stats(
            values, sets, own, with_extras, shard.vocab(width), shard
        ).outputs
        return out

    return joined(masked, rows, shape, extras, whole, of_sets)


def entries_of(logits: Tensor, sets: RowSets) -> Tensor:
    """The logits of sets, out of [N, V] or [B, T, V]."""
    row, column = sets.places[sets.of_entry], sets.columns.long()
    # not of reshaped logits, which a copy may be
    if logits.ndim == 2:
        values = logits[row, column]
    else:
        values = logits[row // logits.shape[1], row % logits.shape[1], column]
    return values.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def eager_masked_stats(
    eager: Callable[..., dict[str, Tensor]],
    logits: Tensor,  # [N, V]
    rows: RowArguments,
    sampling_mask: SamplingMask,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
) -> TokenStats:
    """In plain torch: the other tokens' logits become -inf."""
    kept = kept_entries(logits, rows.targets, rows.mask, sampling_mask)
    found = eager(logits, *rows[:-1], kept)
    if any(name in FULL for name in extras):
        with torch.no_grad():
            full = eager(logits, *rows[:-1])
        mass = (found["lse"].detach() - full["lse"]).exp().clamp(max=1)
        found["kept_mass"] = mass if rows.mask is None else mass * rows.mask
        found["full_logp"], found["full_entropy"] = full["logp"], full["entropy"]
    known = tuple([name for name in extras if name not in DROPPED])
    return with_nothing_dropped(to_stats(found, shape, known), extras)


def kept_entries(
    logits: Tensor,  # [N, V]
    targets: Tensor | None,
    mask: Tensor | None,
    sampling_mask: SamplingMask,
) -> Tensor:  # [N, V] bool
    """True where a row's set, or the lack of one, leaves a logit as it is."""
    n, width = logits.shape
    wanted = None if targets is None else targets.cpu()
    sets = MaskedRows.among(sampling_mask, wanted, mask, Shard(), width, logits.device).sets
    kept = logits.new_ones(n, width, dtype=torch.bool)
    kept[sets.places] = False
    kept[sets.places[sets.of_entry], sets.columns.long()] = True
    return kept


def mask_facts(sampling_mask: Any) -> Facts:
    """What of a sampling mask must be the same on every rank."""
    if sampling_mask is None:
        return ()
    arrays = (torch.as_tensor(sampling_mask.token_ids), torch.as_tensor(sampling_mask.offsets))
    return (("sampling_mask (its checksum)", fingerprint(*arrays)),)
