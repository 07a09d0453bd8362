"""Rows for tests of tail_mass, each family wrong for a backward of few entries in its own way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def rows(kind: str, seed: int, n: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 logits [n, vocab] and targets [n]."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, vocab, generator=g, dtype=torch.float64)
    t = torch.randint(vocab, (n,), generator=g)
    order = torch.rand(n, vocab, generator=g).argsort(1)
    if kind == "gaussian":
        z = z * (0.5 + torch.arange(n)[:, None] % 6)
    elif kind == "peaked":
        top = torch.randint(vocab, (n, 9), generator=g)
        heights = 10 + 9 * torch.rand(n, 9, generator=g, dtype=torch.float64)
        z = z.scatter_add(1, top, heights)
        t = top[:, 0]
    elif kind == "zipf":
        # p ~ 1 / rank^s: from tails that hold nearly all to ones that hold nothing
        s = torch.linspace(0.8, 6.0, n, dtype=torch.float64)[:, None]
        z = torch.zeros_like(z).scatter(1, order, -s * torch.log1p(torch.arange(vocab)).double())
    elif kind == "all equal":
        z = torch.full_like(z, 2.5)
    elif kind == "two points":
        z = torch.full_like(z, -40.0)
        z[:, 7 % vocab], z[:, -1] = 3.0, 3.0 - torch.arange(n).double()
    elif kind == "tiny target":
        z = torch.full_like(z, -30.0) + z
        z[:, 1] = 10.0
        t = torch.full((n,), vocab - 1)
    elif kind == "plateau":
        # exactly as many equal entries as are kept, one less, one more; the rest far below
        z = torch.full_like(z, -50.0)
        for i in range(n):
            z[i, order[i, : min(vocab, 62 + i % 6)]] = 0.0
    elif kind == "edge of the sign":
        # H = log 65 - little, and dropped entries with p just around e^-H
        z = torch.full_like(z, -60.0)
        for i in range(n):
            z[i, order[i, : min(vocab, 64)]] = 0.0
            z[i, order[i, 64 : 64 + 3 * i]] = -0.02 * i
    else:
        raise KeyError(kind)
    return z, t


KINDS = (
    "gaussian", "peaked", "zipf", "all equal", "two points", "tiny target", "plateau",
    "edge of the sign",
)  # fmt: skip


def signs(seed: int, n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """g_logp, g_entropy, g_lse: each pattern of signs, and zeros."""
    draw = np.random.default_rng(seed)
    size = draw.uniform(0.3, 2.0, (3, n))
    patterns = [
        (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0),
        (-1, 1, -1), (-1, -1, 1), (1, 0, 1),
    ]  # fmt: skip
    return [tuple(np.float64(s) * row for s, row in zip(p, size, strict=True)) for p in patterns]  # type: ignore[misc]


# float32 moments are off by a few 1e-7 of the mass, and so is what is measured of the dropped.
ROUNDING = {torch.float32: 3e-6, torch.float64: 1e-13}


def upstream(g: Any) -> dict[str, Any]:
    return dict(zip(("g_logp", "g_entropy", "g_lse"), g, strict=True))


def problem(
    seed: int, n: int, hidden: int, vocab: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Most rows peaked, at several entries; a quarter flat."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(vocab, hidden, generator=generator) / hidden**0.5
    top = torch.randint(vocab, (n, 3), generator=generator)
    h = 16 * (w[top] * torch.tensor([1.0, 0.9, 0.8])[:, None]).sum(1)
    h[::4] = torch.randn(len(h[::4]), hidden, generator=generator)
    leaves = (x.to(dtype).requires_grad_() for x in (h, w))
    return (*leaves, top[:, 0])  # type: ignore[return-value]


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm())
