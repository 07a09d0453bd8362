"""The words of the harness: a case, a call, an op, an implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Results = dict[str, Tensor]
Expected = Mapping[str, npt.NDArray[Any]]
# From the results of an implementation (which may lack some outputs) to what they should have been.
Oracle = Callable[[Results], Expected]
# Kinds of lines of a table.
OURS, TORCH, PEER, FLOOR = "ours", "torch", "peer", "floor"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """The sizes and values one op is run at."""

    rows: int = 512
    vocab: int = 151_936
    width: int = 1024  # of hidden; unused where logits are given
    dtype: str = "float32"
    logits: str = "gaussian"  # or the mean entropy in nats of a peaked distribution: "0.8"
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize


@dataclass(frozen=True)
class Call:
    """Something to time, with its inputs bound."""

    run: Callable[[Any], Any]
    # Before each run and not timed; what it returns goes to `run`.
    prepare: Callable[[], Any] = field(default=lambda: None)
    # From what `run` returned, not timed either.
    results: Callable[[Any], Results] = field(default=lambda found: found)

    def __call__(self) -> Results:
        return self.results(self.run(self.prepare()))


@dataclass(frozen=True)
class Implementation:
    """An implementation: which functions it has, each imported when asked for."""

    name: str
    kind: str  # OURS, TORCH or PEER
    # family of ops -> loader of its function
    functions: Mapping[str, Callable[[], Callable[..., Results]]]
    outputs: tuple[str, ...] = ("logp", "entropy")
    package: str = ""  # what must be installed
    # The plain one, whose error is the measure of the others.
    baseline: bool = False


@dataclass(frozen=True)
class Op:
    """A row of the registry."""

    name: str
    group: str
    # Families that can serve it, best first.
    families: tuple[str, ...]
    inputs: Callable[[Case], Any]
    # How a function of those families becomes a call on these inputs.
    call: Callable[[Callable[..., Results], Any], Call]
    oracle: Callable[[Any], Oracle]
    # The least any implementation must do; ratios are to the first.
    floors: Callable[[Any], dict[str, Call]]
    # What must be moved (bytes), term by term, and computed.
    bytes: Callable[[Case], dict[str, int]]
    flops: Callable[[Case], float]
    shape: Callable[[Case], str]  # a case in words
    bound_by: str = "bytes"  # or "flops": the rate that a table shows
    # Other ways to call ours that belong beside it.
    variants: Callable[[Any], dict[str, Call]] = field(default=lambda _: {})
    # Outputs that may differ from one implementation to the next, such as a drawn token.
    random: tuple[str, ...] = ()
    # Error of gradients, as a share of their largest entry, that a variant announces.
    announced: Mapping[str, float] = field(default_factory=dict)
    # Each row's outputs and gradients depend on that row alone, so any rows of a run can be judged.
    rowwise: bool = False
    # Also timed at every size, and not at the headline alone.
    sizes: bool = False
    # A call so small that its time is the host's: timed warm, in bursts, by wall and by CPU clock.
    tiny: bool = False
