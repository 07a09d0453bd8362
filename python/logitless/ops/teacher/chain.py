"""A teacher's way from raw logits to z: the chain of every row, and noise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from logitless.backends.row_kernels.noise import RowNoise
from logitless.ops.rows.arguments import Transform
from logitless.ops.sharding.shard import Shard
from logitless.ops.torch_op import Symbol


class TeacherChain(NamedTuple):
    """A Transform, and the normal noise that is added to z; without `sizes` there is none."""

    bias: Tensor | None
    row_scale: Tensor | None
    scale: float
    pre: float
    softcap: float
    row_ids: Tensor | None = None  # [N] int64
    sizes: Tensor | None = None  # [N] float64
    # a schema's int has 63 bits and a sign
    seed: Symbol = 0
    step: Symbol = 0
    start: int = 0

    @property
    def transform(self) -> Transform:
        return Transform(*self[:5])

    @property
    def noise(self) -> RowNoise | None:
        if self.sizes is None:
            return None
        return RowNoise(self.seed % (1 << 64), self.step, self.row_ids, self.sizes, self.start)

    def on(self, shard: Shard) -> TeacherChain:
        """Of this rank's columns."""
        return self if self.sizes is None else self._replace(start=shard.start)

    def of_rows(self, places: Tensor) -> TeacherChain:
        """Of some rows, whose logits hold their bias already."""
        row_scale, row_ids, sizes = (
            None if x is None else x[places] for x in (self.row_scale, self.row_ids, self.sizes)
        )
        return self._replace(bias=None, row_scale=row_scale, row_ids=row_ids, sizes=sizes)
