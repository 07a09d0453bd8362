"""Draws from the top_k, top_p and min_p of whole rows of logits in torch's operations, with the
numbers of csrc/core/sampling.h. Nothing waits for the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from logitless.backends.row_kernels.eager import softcapped
from logitless.backends.row_kernels.philox import philox_words

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.row_kernels.rows import Rows

# Entries sorted at once: about 50 bytes each are held beside the logits.
AT_ONCE = 1 << 20
# The draw has this number where blocks of the vocabulary have theirs.
TRUNCATED_DRAW = (1 << 20) - 1
# The state's columns.
MAXIMUM, MASS, TARGET = 0, 1, 6


class Limits(NamedTuple):
    top_k: int  # 0: no limit
    top_p: float
    min_p: float


class Entries(NamedTuple):
    """Of each row in order: by y, and of equal ones the smaller id."""

    y: Tensor  # [n, V] float32
    ids: Tensor  # [n, V] int64
    weights: Tensor  # [n, V] float64, e^(z - the largest z)
    before: Tensor  # [n, V] float64, the weights of those that come before


def draw_from_sorted(
    rows: Rows,
    state: Tensor,  # [n, STATE], y of the token is written
    drawn: Tensor,  # [n] int64, written
    *,
    logits: Tensor,  # [n, V]
    limits: Limits,
    numbers: Tensor,  # [n] float64 in (0, 1)
    **out: Tensor,  # set_bits, set_sizes and kept_logp, written
) -> None:
    """A row without a meaning draws the token 0 of an empty set with the log-prob NaN."""
    step = max(AT_ONCE // max(logits.shape[1], 1), 1)
    for start in range(0, rows.n, step):
        chunk = slice(start, start + step)
        outputs = {name: x[chunk] for name, x in out.items()}
        _draw(
            rows.part(chunk), state[chunk], drawn[chunk], logits[chunk], limits, numbers[chunk],
            **outputs,
        )  # fmt: skip


def truncated_numbers(seed: int, step: int, row_ids: Tensor) -> Tensor:  # [n] float64
    """What the token of each row is drawn by."""
    # the sign bit keeps these counters apart from those of random token selection
    place = (step << 20 | TRUNCATED_DRAW) - (1 << 63)
    high, low, *_ = philox_words(seed, row_ids, torch.full_like(row_ids, place))
    numbers: Tensor = (((high << 21) ^ (low >> 11)).double() + 0.5) * 2.0**-53
    return numbers


def _draw(
    rows: Rows,
    state: Tensor,
    drawn: Tensor,
    logits: Tensor,
    limits: Limits,
    numbers: Tensor,
    *,
    set_bits: Tensor,
    set_sizes: Tensor,
    kept_logp: Tensor,
) -> None:
    scale = state.new_full((), rows.scale) if rows.row_scale is None else rows.row_scale
    largest, mass = state[:, MAXIMUM], state[:, MASS]
    good = (mass > 0) & (largest < math.inf) & scale.isfinite()
    entries = _ordered(_values(rows, logits), largest, scale)
    kept = _kept(entries, limits, mass) & good[:, None]
    sizes, total = kept.sum(1), (entries.weights * kept).sum(1)
    # the last entry that begins no later than where the number falls, and weighs anything
    reached = torch.nextafter(numbers * total, numbers.new_full((), math.inf))
    inside = kept & (entries.before < reached[:, None]) & (entries.weights > 0)
    at = (inside.sum(1, keepdim=True) - 1).clamp_min(0)
    y = entries.y.gather(1, at)[:, 0].double()
    drawn.copy_(torch.where(good, entries.ids.gather(1, at)[:, 0], 0))
    set_sizes.copy_(sizes)
    logp = (y - largest) * scale - total.log()
    kept_logp.copy_(torch.where(good, logp, math.nan))
    state[:, TARGET] = torch.where(good, y, state[:, TARGET])
    set_bits.copy_(_bits(torch.zeros_like(kept).scatter_(1, entries.ids, kept)))


def _values(rows: Rows, logits: Tensor) -> Tensor:  # [n, V] float32
    y = logits.float()
    if rows.bias is not None:
        y = y + rows.bias
    return softcapped(y, rows.softcap, rows.pre) if rows.softcap else y


def _ordered(y: Tensor, largest: Tensor, scale: Tensor) -> Entries:
    values, ids = y.sort(dim=1, descending=True, stable=True)
    weights = ((values.double() - largest[:, None]) * scale[..., None]).exp()
    before = torch.nn.functional.pad(weights[:, :-1].cumsum(1), (1, 0))
    return Entries(values, ids, weights, before)


def _kept(entries: Entries, limits: Limits, mass: Tensor) -> Tensor:  # [n, V] bool
    """The first of each row: at most top_k, each with less than top_p of the mass before it, and
    none that weighs less than min_p."""
    kept = (entries.y > -math.inf) & (entries.weights >= limits.min_p)
    if limits.top_k:
        kept[:, limits.top_k :] = False
    if limits.top_p < 1:
        total = entries.weights[:, : limits.top_k].sum(1) if limits.top_k else mass
        kept &= entries.before < (limits.top_p * total)[:, None]
    return kept


def _bits(members: Tensor) -> Tensor:  # [n, ceil(V / 8)] uint8
    """The first id in the lowest bit."""
    padded = torch.nn.functional.pad(members, (0, -members.shape[1] % 8))
    places = 2 ** torch.arange(8, device=members.device)
    bits: Tensor = (padded.unflatten(1, (-1, 8)) * places).sum(-1).to(torch.uint8)
    return bits
