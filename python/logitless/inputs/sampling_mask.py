"""The sets of tokens that rollouts were sampled from, and how they join the rows of a call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from logitless.inputs.checks import is_tensor, is_tracing, shown

# A vector of int64 or int32: a torch tensor or a NumPy array.
Ids: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class SamplingMask:
    """Of each row the tokens that it could be sampled as, under top_k, top_p or min_p.

    Equivalent plain code::

        kept = token_ids[offsets[i] : offsets[i + 1]]        # of row i; none: the whole vocabulary
        z = torch.full_like(z, -inf).index_copy(0, kept, z[kept]) if len(kept) else z

    Rows are those of targets, [B, T] row after row. This is what inference engines return. The ids
    of a row may come in any order, each once, and the row's target is one of them. Rows outside
    the call's mask are not looked at.

    Raises TypeError or ValueError for arrays that are no vectors of integers, and for offsets that
    do not start at 0, fall, or end elsewhere than at the number of ids.
    """

    token_ids: Ids  # [ids]
    offsets: Ids  # [N + 1]

    def __post_init__(self) -> None:
        for name in ("token_ids", "offsets"):
            _check_vector(name, getattr(self, name))
        if is_tensor(self.token_ids) != is_tensor(self.offsets):
            raise TypeError("token_ids and offsets must be both torch or both NumPy")
        _check_offsets(self._host[1], len(self._host[0]))

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> SamplingMask:
        """Of one list of ids a row. TypeError or ValueError with the row where it has others."""
        if not isinstance(lists, Iterable):
            raise TypeError(f"lists must be a list of ids for each row, got {shown(lists)}")
        rows = [_ids_of(i, row) for i, row in enumerate(lists)]
        ids = np.concatenate([np.empty(0, np.int64), *rows])
        return cls(ids, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    @classmethod
    def from_padded(cls, ids: Any) -> SamplingMask:
        """Of [N, K] (or [B, T, K]) ids, with -1 where a row has fewer."""
        if not (is_tensor(ids) or isinstance(ids, np.ndarray)) or ids.ndim < 2:
            raise TypeError(f"ids must be an array [N, K], got {shown(ids)}")
        flat = ids.reshape(-1, ids.shape[-1])
        kept = flat != -1
        found, counts = flat[kept], kept.sum(1)
        if not is_tensor(ids):
            return cls(found, np.concatenate(([0], np.cumsum(counts))).astype(np.int64))
        offsets = counts.new_zeros(len(counts) + 1)
        offsets[1:] = counts.cumsum(0)
        return cls(found, offsets)

    def __len__(self) -> int:
        """The number of rows."""
        return int(self.offsets.shape[0]) - 1

    def lists(self) -> list[list[int]]:
        """The ids of each row."""
        ids, offsets = self._host
        return [part.tolist() for part in np.split(ids, offsets[1:-1])] if len(self) else []

    def rows(self, index: Any) -> SamplingMask:
        """That of some rows, in the order of `index` ([n] row numbers, or [N] booleans)."""
        lists, index = self.lists(), np.asarray(index)
        try:
            chosen = np.arange(len(lists))[index if index.size else []]
        except IndexError as error:
            raise IndexError(f"index must name rows of {len(lists)} rows: {error}") from None
        return SamplingMask.from_lists([lists[i] for i in chosen])

    @cached_property
    def _host(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Ids and offsets, int64 on the host."""
        arrays = (self.token_ids, self.offsets)
        ids, offsets = (x.detach().cpu().numpy() if is_tensor(x) else x for x in arrays)
        # copies, since what is checked must stay
        return ids.astype(np.int64), offsets.astype(np.int64)

    def sets(
        self,
        targets: np.ndarray[Any, Any] | None,  # [N], each in its row's set; None: there are none
        mask: np.ndarray[Any, Any] | None,  # [N] bool
        vocab: int,
    ) -> Sets:
        """Those of a call. ValueError names the first row that is wrong, and what is wrong."""
        return _sets(*self._host, targets, mask, vocab)


class Sets(NamedTuple):
    """The rows of a call that have a set, and their ids."""

    places: np.ndarray[Any, Any]  # [n] int64 among the rows of the call
    offsets: np.ndarray[Any, Any]  # [n + 1] int64
    ids: np.ndarray[Any, Any]  # [entries] int32, ascending within a row

    @property
    def rows(self) -> np.ndarray[Any, Any]:
        """[entries] the row of each among those of the call."""
        return np.repeat(self.places, np.diff(self.offsets))

    def named(self, vocab: int) -> np.ndarray[Any, Any]:
        """int64, ascending: the ids that are in any set, each once."""
        return np.flatnonzero(np.bincount(self.ids, minlength=vocab))

    def within(self, start: int, stop: int) -> Sets:
        """Their ids from start to stop, counted from start."""
        inside = (start <= self.ids) & (self.ids < stop)
        before = np.concatenate(([0], np.cumsum(inside)))
        return Sets(self.places, before[self.offsets], self.ids[inside] - np.int32(start))


def check_sampling_mask(sampling_mask: Any, shape: tuple[int, ...]) -> None:
    """Its type, and its rows: one for each token of this shape."""
    if not isinstance(sampling_mask, SamplingMask):
        raise TypeError(f"sampling_mask must be a SamplingMask or None, got {shown(sampling_mask)}")
    if is_tracing():
        raise NotImplementedError(
            "sampling_mask in a graph of torch.compile is not built: its ids are looked at"
        )
    if len(sampling_mask) != math.prod(shape):
        raise ValueError(
            f"sampling_mask must have a row for each of {math.prod(shape)} tokens, "
            f"got {len(sampling_mask)}"
        )


def _ids_of(i: int, row: Any) -> np.ndarray[Any, Any]:
    """Row i of lists. An empty list has no dtype that says anything."""
    ids = np.asarray(row.detach().cpu() if is_tensor(row) else row)
    if ids.ndim != 1:
        raise ValueError(f"lists must hold a list of ids for row {i}, got {shown(row)}")
    if len(ids) and (ids.dtype.kind not in "iu" or int(ids.max()) >= 2**63):
        raise TypeError(f"lists must hold ids, whole numbers in int64, for row {i}, got {row!r}")
    return ids.astype(np.int64)


def _check_vector(name: str, array: Any) -> None:
    if not (is_tensor(array) or isinstance(array, np.ndarray)):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, got {shown(array)}")
    plain = not is_tensor(array) or not (array.is_nested or array.is_sparse or array.is_meta)
    dtype = str(array.dtype).removeprefix("torch.")
    if not plain or dtype not in ("int64", "int32"):
        raise TypeError(f"{name} must be int64 or int32, got {shown(array)}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be a vector, got {shown(array)}")


def _check_offsets(offsets: np.ndarray[Any, Any], ids: int) -> None:
    if not len(offsets) or offsets[0] != 0:
        got = f"{offsets[0]}" if len(offsets) else "no element"
        raise ValueError(f"offsets must start at 0, got {got}")
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        row = int(falls[0])
        raise ValueError(
            f"offsets must not fall, got {offsets[row + 1]} after {offsets[row]} at row {row}"
        )
    if offsets[-1] != ids:
        raise ValueError(f"offsets must end at the number of token_ids, {ids}, got {offsets[-1]}")


def _sets(
    ids: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any] | None,
    mask: np.ndarray[Any, Any] | None,
    vocab: int,
) -> Sets:
    counts = np.diff(offsets)
    has = counts > 0 if mask is None else (counts > 0) & mask
    places = np.flatnonzero(has)
    counts = counts[places]
    starts = np.concatenate(([0], np.cumsum(counts)))
    row = np.repeat(np.arange(len(places)), counts)
    if starts[-1] != len(ids):
        ids = ids[np.arange(starts[-1]) + (offsets[places] - starts[:-1])[row]]
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab))
    if len(wrong):
        at = wrong[0]
        raise ValueError(
            f"row {places[row[at]]}: sampling_mask has token {ids[at]}, outside [0, {vocab})"
        )
    # One number for a row and an id, so that one sort serves all rows.
    keys = ids + row * vocab
    if (keys[1:] <= keys[:-1]).any():
        keys.sort()
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            at, token = divmod(int(keys[twice[0]]), vocab)
            raise ValueError(f"row {places[at]}: sampling_mask has token {token} twice")
        ids = keys - row * vocab
    if targets is not None:
        _check_targets(targets[places], places, counts, row, ids, vocab)
    return Sets(places, starts, ids.astype(np.int32))


def _check_targets(
    wanted: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    counts: np.ndarray[Any, Any],
    row: np.ndarray[Any, Any],  # of each id
    ids: np.ndarray[Any, Any],
    vocab: int,
) -> None:
    there = np.zeros(len(places), bool)
    there[row[ids == wanted[row]]] = True
    missing = np.flatnonzero(~there)
    if len(missing):
        at = missing[0]
        known = 0 <= wanted[at] < vocab
        what = f"its sampling_mask of {counts[at]} ids" if known else f"[0, {vocab})"
        raise ValueError(f"row {places[at]}: target {wanted[at]} is outside {what}")
