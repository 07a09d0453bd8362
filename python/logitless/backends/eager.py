"""Plain torch with full logits, everywhere: the reference, named backend="torch"."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from logitless.backends.base import Backend
from logitless.backends.gpus import machine_of

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.backends.token_kernels.protocol import TokenKernels


def _statistics(*arguments: Any) -> dict[str, Tensor]:
    from logitless.backends.row_kernels.eager import eager_stats

    return eager_stats(*arguments)


def _divergence(*arguments: Any) -> dict[str, Tensor]:
    from logitless.backends.row_kernels.eager_divergence import eager_divergence

    return eager_divergence(*arguments)


def no_torch() -> str:
    missing = importlib.util.find_spec("torch") is None
    return "torch is not installed: pip install 'logitless[torch]'" if missing else ""


# Kinds of devices that are known to have float64; "cuda" is ROCm's name too.
WIDE = ("cpu", "cuda")


def tokens_of(device: str) -> TokenKernels:
    """Token kernels in torch's operations, which are in float64. Elsewhere, as on mps, they are the
    CPU's, and the vectors come to it as copies."""
    if device.split(":")[0] not in WIDE:
        from logitless.backends.token_kernels.cpu import CPU_TOKENS

        return CPU_TOKENS
    from logitless.backends.token_kernels.torch_tokens import torch_tokens

    return torch_tokens(device)


_PLAIN = "it is plain torch with full logits"
BACKEND = Backend(
    name="torch",
    why_not=lambda device, dtype: no_torch(),
    machine=machine_of,
    statistics=_statistics,
    tokens=tokens_of,
    full_divergence=_divergence,
    absent={
        "rows": f"{_PLAIN}, whose gradients autograd makes",
        "divergence": f"{_PLAIN} of both, whose gradients autograd makes",
        "sets": f"{_PLAIN}, whose gradients are dense",
        "topk": f"{_PLAIN} and exact; tail_mass=0 is that everywhere",
        "sampling": f"{_PLAIN}; torch.multinomial draws from them",
    },
)
