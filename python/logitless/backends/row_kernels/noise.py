"""Normal noise on a teacher's rows, as csrc/core/noise.h defines it: for kernels, and in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.inputs.records import changed

if TYPE_CHECKING:
    from torch import Tensor

_SEED, _LOW = 0x7465616368657200, 0xFFFFFFFF


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
        words = _words(self.seed, self.step, self.row_ids[:, None], tokens // 64 * 16 + tokens % 16)
        quarter = tokens // 16 % 4
        first, second = (torch.where(quarter < 2, words[i], words[i + 2]) for i in (0, 1))
        radius = (-2 * (((first >> 9).double() + 0.5) * 2.0**-23).log()).sqrt()
        part = ((second >> 7 & 0x7FFFFF).double() + 0.5) * 2.0**-23 - 0.5
        angle = math.pi / 2 * ((second >> 30) + part)
        normal = radius * torch.where(quarter % 2 == 0, angle.cos(), angle.sin())
        found: Tensor = self.sizes[:, None] * normal
        return found


def _words(seed: int, step: int, rows: Tensor, counters: Tensor) -> list[Tensor]:
    """Philox 4x32-10 of [n, columns]; words are int64, whose products wrap as unsigned ones do."""
    place, seed = counters + (step << 29), seed ^ _SEED
    words = [rows & _LOW, rows >> 32 & _LOW, place & _LOW, place >> 32 & _LOW]
    keys = [seed & _LOW, seed >> 32]
    for _ in range(10):
        products = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        (low0, high0), (low1, high1) = ((p & _LOW, p >> 32 & _LOW) for p in products)
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [(keys[0] + 0x9E3779B9) & _LOW, (keys[1] + 0xBB67AE85) & _LOW]
    return words
