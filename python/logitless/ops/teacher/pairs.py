"""A student's rows beside their teacher's, as the passes over a head's tiles take rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.inputs.records import changed
from logitless.ops.rows.arguments import Transform, kernel_rows
from logitless.ops.teacher.chain import TeacherChain

if TYPE_CHECKING:
    from logitless.backends.base import DivergenceKernels
    from logitless.ops.sharding.shard import Shard
    from logitless.ops.teacher.tiles import HeadTiles


class PairOutputs(NamedTuple):
    """[N] each, flat."""

    divergence: Tensor
    entropy: Tensor
    teacher_entropy: Tensor
    reverse_kl: Tensor
    forward_kl: Tensor


# The results with a gradient of an op whose results have PairOutputs named `outputs`.
DIFFERENTIATED = ("outputs.divergence", "outputs.entropy")


class Measure(NamedTuple):
    """Which divergence, and whose kernels."""

    kind: str
    beta: float
    backend: str

    @property
    def mixed(self) -> bool:
        """Whether it is from a mix, which takes a pass that knows the normalisers of both."""
        return self.kind == "jsd"

    def rows(
        self, op: str, n: int, given: Tensor, mask: Tensor | None, student: Transform,
        teacher: TeacherChain,
    ) -> PairedRows:  # fmt: skip
        """Of n rows, without their teacher's tiles."""
        own, other = (
            kernel_rows(op, n, given, mask, chain, self.backend, targeted=False)
            for chain in (student, teacher.transform)
        )
        if teacher.sizes is not None:
            other = changed(other, noise=teacher.noise)
        return PairedRows(**own.__dict__, teacher=other, kind=self.kind, beta=self.beta)


class Given(NamedTuple):
    """Logits of the teacher's that a caller has: one tile."""

    logits: Tensor  # [N, V] or [B, T, V]

    def __call__(self, start: int, width: int) -> Tensor:
        return self.logits


@dataclass(frozen=True)
class PairedRows(Rows):
    """The student's rows; of each tile of theirs the kernels see the teacher's as well. The first
    of a row's upstream gradients is that of its divergence."""

    teacher: Any = None  # Rows
    # (first column, width) -> the teacher's tile of these rows
    tiles: HeadTiles | Given | None = None
    kind: str = ""
    beta: float = 0.5
    sums: Any = None  # [n, 2] float64 of a mix

    @cached_property
    def pair(self) -> DivergenceKernels:
        assert self.backend.divergence is not None
        return self.backend.divergence(self, self.teacher)

    def beside(self, tiles: HeadTiles | Given | None, sums: Any) -> PairedRows:
        """With the teacher's tiles, if any, and memory for the sums of a mix."""
        return changed(self, tiles=tiles, sums=sums)

    def gather(self, index: Any) -> PairedRows:
        rows = super().gather(index)
        assert isinstance(rows, PairedRows)
        if index is None:
            return rows
        tiles = None if self.tiles is None else self._head.at(index)
        sums = None if self.sums is None else self.sums[index]
        return changed(rows, teacher=self.teacher.gather(index), tiles=tiles, sums=sums)

    def part(self, chunk: slice) -> PairedRows:
        rows = super().part(chunk)
        assert isinstance(rows, PairedRows)
        if rows is self:
            return self
        tiles = None if self.tiles is None else self._head.part(chunk)
        sums = None if self.sums is None else self.sums[chunk]
        return changed(rows, teacher=self.teacher.part(chunk), tiles=tiles, sums=sums)

    @property
    def _head(self) -> HeadTiles:
        assert not isinstance(self.tiles, (Given, type(None)))
        return self.tiles

    def _both(self, tile: Any, start: int) -> tuple[Any, Any]:
        assert self.tiles is not None
        return tile, self.tiles(start, tile.shape[1])

    def forward(
        self, tile: Any, state: Any, *, start: int = 0, first: bool = True, **_: Any
    ) -> None:
        self.pair.forward(*self._both(tile, start), state, start=start, first=first)

    def mix(self, tile: Any, state: Any, *, start: int = 0, first: bool = True) -> None:
        """Add a tile to the sums, once the state of all columns is known."""
        both, beta = self._both(tile, start), self.beta
        self.pair.mix(*both, state, self.sums, beta=beta, start=start, first=first)

    def gradient(
        self,
        tile: Any,
        state: Any,
        out: Any,
        *,
        start: int = 0,
        g_logp: Any = None,
        g_entropy: Any = None,
        g_lse: Any = None,
    ) -> None:
        self.pair.gradient(
            *self._both(tile, start), state, out, start=start, kind=self.kind, beta=self.beta,
            sums=self.sums, g_divergence=g_logp, g_entropy=g_entropy,
        )  # fmt: skip

    def merge_over(self, shard: Shard, state: Tensor) -> None:
        """The states of this rank's columns become those of all."""
        if shard.group and len(state):
            self.pair.merge(shard.gather(state), state)

    def add_over(self, shard: Shard) -> None:
        """The sums over this rank's columns become those over all, the same bits on every rank."""
        if not shard.group or not len(self.sums):
            return
        parts = shard.gather(self.sums)
        self.sums.zero_()
        for part in parts.unbind(0):
            self.sums.add_(part)

    def outputs(self, state: Tensor, like: Tensor, row_ids: Tensor | None = None) -> PairOutputs:
        """[n] each. A bad row raises, or is flagged."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        # not parts of one tensor: results of an op may not alias
        divergence, *others = (
            torch.empty(self.n, dtype=dtype, device=like.device) for _ in PairOutputs._fields
        )
        named = PairOutputs(divergence, *others)
        values = named._asdict()
        del values["divergence"]
        self.pair.finalize(state, row_ids=row_ids, **values)
        divergence.copy_(self.mixture() if self.kind == "jsd" else values[self.kind])
        return named

    def mixture(self) -> Any:
        """(1 - beta) KL(student || mix) + beta KL(teacher || mix); rounding may take it below 0."""
        own, others = self.sums[:, 0], self.sums[:, 1]
        return ((1 - self.beta) * own + self.beta * others).clip(min=0)


def empty_pair_states(state: Tensor) -> None:  # [n, STATE]
    """What a forward leaves where there is no column: see csrc/core/divergence.h."""
    state.zero_()
    state[:, :: STATE // 2].fill_(-float("inf"))
