"""Shapes, dtypes and logits that the tests share, each with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# (N, V)
ROW_SHAPES = (
    (0, 7),  # nothing to do
    (1, 1),  # one token, one outcome: logp = 0, H = 0
    (3, 2),
    (33, 127),  # a ragged tail shorter than the 64 lanes, an odd number of rows
    (5, 2048),  # exactly one block
    (2, 2049),  # a block and a tail of one
    (9, 5000),  # three blocks, few rows: blocks go to threads
    (40, 4133),  # many rows: rows go to threads
)


def logits(seed: int, n: int, vocab: int, dtype: torch.dtype, spread: float = 4.0) -> torch.Tensor:
    """Gaussian logits with peaked rows, ties and impossible tokens planted."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, vocab, generator=generator) * spread
    if n and vocab > 2:
        z[0] = 1.5  # all equal: H = log V
        z[n // 2, vocab // 2] = 60.0  # nearly one-hot
        z[-1, : vocab // 3] = -float("inf")  # masked vocabulary
    return z.to(dtype)


def targets(seed: int, n: int, vocab: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    # The lower third of the last row is impossible, see `logits`.
    return torch.randint(vocab // 3, vocab, (n,), generator=generator)


def upstream(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """g_logp, g_entropy, g_lse of both signs, with some rows all zero."""
    generator = torch.Generator().manual_seed(seed + 2)
    g = torch.randn(3, n, generator=generator)
    g[:, ::4] = 0.0
    return g[0], g[1], g[2]


def mask(seed: int, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 3)
    return torch.rand(n, generator=generator) > 0.3


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """float64, exactly."""
    tensor = tensor.detach().cpu()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()


def chain(kind: str, seed: int, n: int, vocab: int) -> dict[str, Any]:
    """Keyword options of the head: every link of the chain alone and all at once."""
    generator = torch.Generator().manual_seed(seed + 4)
    bias = torch.randn(vocab, generator=generator)
    temperature = torch.rand(n, generator=generator) + 0.5
    return {
        "plain": {},
        "temperature": {"temperature": 0.7},
        "row_temperature": {"temperature": temperature},
        "softcap": {"softcap": 15.0},
        "scale": {"logit_scale": 0.3},
        "bias": {"bias": bias},
        "all": {
            "temperature": temperature,
            "softcap": 15.0,
            "logit_scale": 1.3,
            "bias": bias,
        },
    }[kind]


CHAINS = ("plain", "temperature", "row_temperature", "softcap", "scale", "bias", "all")


def numpy_chain(options: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.numpy().astype(np.float64) if torch.is_tensor(v) else v for k, v in options.items()
    }
