"""The tokens of one call, checked and flattened: what every function of the losses works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from logitless.inputs.records import changed

# Arrays of one kind in a call: NumPy's, also of tensors on the CPU, or tensors of a device.
# float32, or float64 where logp is
Floats: TypeAlias = Any
Float64s: TypeAlias = Any
Int64s: TypeAlias = Any
Bools: TypeAlias = Any
# A Python number; of arrays on a device a tensor without dimensions, which the host has not read.
Number: TypeAlias = Any
# What a user passes: a torch tensor or a NumPy array.
Array: TypeAlias = Any


@dataclass(frozen=True)
class Sequences:
    """The sequences of a call: of padded rows [B, T] or of packed tokens [N] with cu_seqlens."""

    lengths: Int64s  # [B], padding included
    # T of a padded call
    width: int | None
    # N
    tokens: int
    xp: Any

    @property
    def number(self) -> int:
        return len(self.lengths)

    @cached_property
    def of_token(self) -> Int64s:  # [N]
        return self.xp.repeat(self.xp.arange(self.number, self.lengths), self.lengths, self.tokens)


# What a token has beside its mask, id and logp.
DATA = (
    "advantages", "old_logp", "entropy", "ref_logp", "rollout_logp", "entropy_change", "weights",
    "old_entropy",
)  # fmt: skip


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
    # the caller's factors of the policy term
    weights: Floats | None
    # None: 0, 1, 2, ...
    given_ids: Int64s | None
    # None: packed tokens without cu_seqlens
    sequences: Sequences | None
    # the token kernels that work on these arrays (backends/token_kernels/protocol.py)
    kernels: Any
    # of the core's loops; 0: its default
    threads: int = 0
    # where these are among the tokens of the call; None: they are all of them
    places: Int64s | None = None
    # old_logp is logp, without its gradient
    on_policy: bool = False
    # of the old policy
    old_entropy: Floats | None = None

    @property
    def xp(self) -> Any:
        """The array functions of these arrays (backends/token_kernels/arrays.py)."""
        return self.kernels.xp

    @cached_property
    def ids(self) -> Int64s:
        if self.given_ids is None:
            return self.xp.arange(len(self.logp), self.logp)
        return self.given_ids

    @cached_property
    def number_valid(self) -> Any:
        """An int; on a device an array without dimensions, for the host knows no value of it."""
        return self.kernels.count(self, None)

    def at(self, index: Int64s) -> Tokens:
        """Some of them, for what looks at no sequence."""
        names = ("mask", "logp", *DATA)
        values = {name: getattr(self, name) for name in names}
        some: dict[str, Any] = {name: x[index] for name, x in values.items() if x is not None}
        places = index if self.places is None else self.places[index]
        return changed(self, **some, given_ids=self.ids[index], sequences=None, places=places)

    def with_values(self, logp: Floats, entropy: Floats | None) -> Tokens:
        """The same tokens with these, and all else in the dtype of logp."""
        logp, flat = self.xp.flat(logp, logp.dtype), self.xp.flat
        values = {name: getattr(self, name) for name in DATA} | {"entropy": entropy}
        other: dict[str, Any] = {
            name: flat(x, logp.dtype)
            for name, x in values.items()
            if x is not None and (name == "entropy" or x.dtype != logp.dtype)
        }
        if self.on_policy:
            other["old_logp"] = logp
        return changed(self, **{"logp": logp, "entropy": None} | other)

    def reference(self, name: str) -> Floats | None:
        """The log-probs that a KL or mask `against` this name is measured from."""
        return {"ref": self.ref_logp, "old": self.old_logp, "rollout": self.rollout_logp}[name]

    def require_sequences(self) -> Sequences:
        """The sequences, where something cannot do without them."""
        if self.sequences is None:
            raise ValueError(
                "a loss per sequence needs padded [B, T] inputs or cu_seqlens, "
                "got packed [N] inputs and cu_seqlens=None"
            )
        return self.sequences

    def place(self, token: int) -> str:
        """A token of the flat arrays as the caller's index, for messages."""
        flat = int(token if self.places is None else self.places[token])
        index = []
        for size in reversed(self.shape):
            flat, at = divmod(flat, size)
            index.append(at)
        return str(index[::-1])
