"""The largest logits of rows as the kernels of a device keep them, tile by tile."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.row_kernels.topk import TopK
from tests.support.device.devices import Device

CPU = Device("cpu", "cpu")


def kernels_of(device: Device) -> Any:
    return registry.get(device.backend).topk


def rows_on(device: Device, n: int, **options: Any) -> Rows:
    there = {name: x.to(device.name) if torch.is_tensor(x) else x for name, x in options.items()}
    targets = there.pop("targets", torch.zeros(n, dtype=torch.int64, device=device.name))
    return Rows(registry.get(device.backend), n, targets, **there)


def tiles(device: Device, z: torch.Tensor, cuts: Any) -> list[tuple[int, torch.Tensor]]:
    """The first column of each tile between the cuts, and the tile."""
    parts = [
        (start, z[:, start:stop]) for start, stop in itertools.pairwise((0, *cuts, z.shape[1]))
    ]
    return [(start, x.contiguous() if device == CPU else x.to(device.name)) for start, x in parts]


def captured(
    device: Device, z: torch.Tensor, *, keep: int, margin: float = math.inf, cuts: Any = (),
    into: TopK | None = None, **options: Any,
) -> tuple[Rows, torch.Tensor, TopK]:  # fmt: skip
    """The state and the entries of each row after the tiles between the cuts."""
    n = len(z)
    rows = rows_on(device, n, **options)
    state = torch.empty(n, STATE, dtype=torch.float64, device=device.name)
    kept = into or TopK.empty(n, keep, margin=margin, device=device.name)
    for start, tile in tiles(device, z.to(device.name), cuts):
        rows.forward(tile, state, start=start, first=start == 0, topk=kept)
    kernels_of(device).finalize(rows, state, kept)
    return rows, state, kept


def entries(kept: TopK) -> list[tuple[list[int], list[float]]]:
    return [
        (kept.ids[i, :count].tolist(), kept.values[i, :count].tolist())
        for i, count in enumerate(kept.count.tolist())
    ]


def awkward(seed: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Ties, sorted both ways, late and early peaks, -inf, both zeros."""
    z = torch.randn(8, vocab, generator=torch.Generator().manual_seed(seed)) * 4
    z[1] = 1.5
    z[2] = z[2].sort().values
    z[3, -1], z[4, 0] = 60.0, 60.0
    z[5] = z[5].round()
    z[6, :-1] = -float("inf")
    z[7] = torch.where(z[7] > 0, 0.0, -0.0)
    return z.to(dtype)
