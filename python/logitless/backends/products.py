"""torch's dense products: the one place that calls them."""

from __future__ import annotations

import torch
from torch import Tensor

from logitless.backends.base import Products


class TorchProducts:
    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        if out.dtype == a.dtype:
            torch.mm(a, b, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)

    def add(self, total: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
        if total.dtype == a.dtype:
            torch.addmm(total, a, b, beta=beta, alpha=alpha, out=total)
        else:
            torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, alpha=alpha, out=total)


TORCH: Products = TorchProducts()


def has_mixed(products: Products, device: torch.device) -> bool:
    """Whether products of 16-bit operands are written, and added up in place, in float32: tried,
    since releases of torch differ in what they take."""
    for dtype in (torch.bfloat16, torch.float16):
        # its square has more bits than any 16-bit number
        value = 1 + 2.0**-7
        x = torch.full((16, 16), value, dtype=dtype, device=device)
        out, total = (torch.ones(16, 16, dtype=torch.float32, device=device) for _ in range(2))
        try:
            products.multiply(x, x, out)
            products.add(total, x, x, beta=1.0, alpha=2.0)
        except (RuntimeError, TypeError):
            return False
        product = 16 * value**2
        if not bool(((out == product) & (total == 1 + 2 * product)).all()):
            return False
    return True
