"""The tokens of one call, checked and flattened: what every function of the losses works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

# float32, or float64 where logp is
Floats = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sequences:
    """The sequences of a call: of padded rows [B, T] or of packed tokens [N] with cu_seqlens."""

    lengths: Int64s  # [B], padding included
    # T of a padded call
    width: int | None

    @property
    def number(self) -> int:
        return self.lengths.size

    @cached_property
    def of_token(self) -> Int64s:  # [N]
        return np.repeat(np.arange(self.number, dtype=np.int64), self.lengths)


@dataclass(frozen=True)
class Tokens:
    """Flat contiguous arrays of one length N. What lies outside the mask is never read."""

    shape: tuple[int, ...]
    mask: Bools
    logp: Floats
    advantages: Floats
    old_logp: Floats | None
    entropy: Floats | None
    ref_logp: Floats | None
    rollout_logp: Floats | None
    entropy_change: Floats | None
    # None: 0, 1, 2, ...
    given_ids: Int64s | None
    # None: packed tokens without cu_seqlens
    sequences: Sequences | None
    # of the core's loops; 0: its default
    threads: int = 0

    @cached_property
    def ids(self) -> Int64s:
        if self.given_ids is None:
            return np.arange(self.logp.size, dtype=np.int64)
        return self.given_ids

    @cached_property
    def number_valid(self) -> int:
        return int(np.count_nonzero(self.mask))

    def reference(self, name: str) -> Floats | None:
        """The log-probs that a KL or mask `against` this name is measured from."""
        return {"ref": self.ref_logp, "old": self.old_logp, "rollout": self.rollout_logp}[name]

    def whole(self) -> Sequences:
        """The sequences, where something cannot do without them."""
        if self.sequences is None:
            raise ValueError(
                "a loss per sequence needs padded [B, T] inputs or cu_seqlens, "
                "got packed [N] inputs and cu_seqlens=None"
            )
        return self.sequences

    def place(self, token: int) -> str:
        """A token of the flat arrays as the caller's index, for messages."""
        return str([int(i) for i in np.unravel_index(token, self.shape)])
