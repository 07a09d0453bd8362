"""A GPU's tiles and products on the CPU: a table's machine, and products of 16-bit operands in
float32, which torch has on a device alone."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.base import Products
from logitless.backends.gpus import GPUS
from logitless.backends.machine import Machine
from logitless.backends.row_kernels.rows import BLOCK


class MixedProducts:
    """torch's, with 16-bit operands cast where the result is wider."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)

    def add(self, total: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
        a, b = a.to(total.dtype), b.to(total.dtype)
        torch.addmm(total, a, b, beta=beta, alpha=alpha, out=total)


def gpu(name: str = "H200", **numbers: Any) -> Machine:
    """A machine of the table whose tiles are whole blocks, as the CPU's core asks for."""
    return replace(GPUS[name], **{"column_quantum": BLOCK, **numbers})


def as_gpu(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    machine: Machine,
    *,
    mixed: bool = True,
    products: Products | None = None,
    stands_in: bool = True,
) -> Machine:
    """A backend on this machine, which is returned. Where a CPU stands in for a GPU, products of a
    GPU, or those given, are made on it; else torch has them or not."""
    if not stands_in:
        mixed = registry.BACKENDS[backend].machine("cuda:0").mixed_products
    machine = replace(machine, mixed_products=mixed)
    changed = replace(
        registry.BACKENDS[backend],
        machine=functools.cache(lambda device: machine),
        products=products or (MixedProducts() if mixed and stands_in else None),
    )
    monkeypatch.setitem(registry.BACKENDS, backend, changed)
    return machine
