"""Normal noise on a teacher's rows, as csrc/core/noise.h defines it: for kernels, and in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.row_kernels.philox import philox_words
from logitless.inputs.records import changed

if TYPE_CHECKING:
    from torch import Tensor

_SEED = 0x7465616368657200


@dataclass(frozen=True)
class RowNoise:
    """Of some rows: which, and how large."""

    seed: int
    step: int
    row_ids: Any  # [n] int64
    sizes: Any  # [n] float64 standard deviations of z
    start: int = 0  # token of the first column of this rank

    def at(self, index: Any) -> RowNoise:
        """Of the rows at an index, or of a slice."""
        return changed(self, row_ids=self.row_ids[index], sizes=self.sizes[index])

    @cached_property
    def core(self) -> _core.divergence.Noise:
        return _core.divergence.Noise(
            self.row_ids, self.sizes, seed=self.seed, step=self.step, start=self.start
        )

    def on(self, device: int) -> _core.divergence.CudaNoise:
        """For the kernels of a CUDA device, where the arrays are."""
        return _core.divergence.CudaNoise(
            self.row_ids, self.sizes, seed=self.seed, step=self.step, start=self.start,
            device=device,
        )  # fmt: skip

    def of_columns(self, width: int) -> Tensor:  # [n, width] float64
        """What is added to z, in torch's operations."""
        import torch

        tokens = torch.arange(self.start, self.start + width, device=self.sizes.device)
        counters = tokens // 64 * 16 + tokens % 16 + (self.step << 29)
        words = philox_words(self.seed ^ _SEED, self.row_ids[:, None], counters)
        quarter = tokens // 16 % 4
        first, second = (torch.where(quarter < 2, words[i], words[i + 2]) for i in (0, 1))
        radius = (-2 * (((first >> 9).double() + 0.5) * 2.0**-23).log()).sqrt()
        part = ((second >> 7 & 0x7FFFFF).double() + 0.5) * 2.0**-23 - 0.5
        angle = math.pi / 2 * ((second >> 30) + part)
        normal = radius * torch.where(quarter % 2 == 0, angle.cos(), angle.sin())
        found: Tensor = self.sizes[:, None] * normal
        return found
