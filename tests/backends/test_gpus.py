"""The table of GPUs: which machine a device is, and what its products are asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.backends import gpus, registry
from logitless.backends.gpus import GPUS, UNKNOWN, gpu_named
from logitless.backends.machine import CPU
from logitless.backends.products import TORCH, TorchProducts, has_mixed
from tests.support.device.mixed import MixedProducts

NAMES = [
    ("NVIDIA H200", (9, 0), "H200"),
    ("NVIDIA GH200 144G HBM3e", (9, 0), "H200"),
    ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
    ("NVIDIA H800", (9, 0), "H100"),
    ("NVIDIA GB200", (10, 0), "B200"),
    ("NVIDIA B300 SXM6 AC", (10, 3), "B200"),
    ("A100-SXM4-40GB", (8, 0), "A100"),
    ("NVIDIA A800-SXM4-80GB", (8, 0), "A100"),
    ("AMD Instinct MI300X OAM", (9, 4), "MI300X"),
    # numbers of AMD's architectures are not NVIDIA's
    ("AMD Instinct MI250X", (9, 0), None),
    ("NVIDIA L40S", (8, 9), None),
    ("Tesla V100-SXM2-16GB", (7, 0), None),
]


@pytest.mark.parametrize(("name", "capability", "expected"), NAMES, ids=[n for n, *_ in NAMES])
def test_a_name_and_a_capability_tell_the_machine(
    name: str, capability: tuple[int, int], expected: str | None
) -> None:
    machine = gpu_named(name, capability)
    assert machine is (GPUS[expected] if expected else UNKNOWN)
    assert machine is gpu_named(name, capability)


def test_an_unknown_gpu_is_taken_for_a_slow_one() -> None:
    for machine in GPUS.values():
        assert machine.flops.keys() == UNKNOWN.flops.keys() == CPU.flops.keys()
        assert all(UNKNOWN.flops[dtype] < rate for dtype, rate in machine.flops.items())
        assert machine.stream > UNKNOWN.stream
        assert UNKNOWN.default_budget <= machine.default_budget
        assert machine.tile_bytes % machine.column_quantum == 0
        assert machine.column_quantum % machine.row_quantum == 0


def test_a_device_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda is replaced by one of two H100; this torch's products on the CPU are not mixed."""
    asked = []

    def properties(index: int) -> Any:
        asked.append(index)
        return SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    # numbers that no other test asks of
    found = [gpus.machine_of(device) for device in ("cuda:97", "cuda:97", "cuda:98", "cuda:97")]
    assert asked == [97, 98]
    assert found[0] is found[1] is found[3] is not found[2]
    assert found[0].tile_bytes == GPUS["H100"].tile_bytes
    assert not found[0].mixed_products


def test_what_runs_on_a_cpu_has_the_cpus_numbers() -> None:
    for backend in registry.BACKENDS.values():
        assert backend.machine("cpu") is backend.machine(torch.device("cpu")) is CPU


class Narrow(MixedProducts):
    """Rounds a product before it is added."""

    def add(self, total: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
        total.mul_(beta).add_(a @ b, alpha=alpha)


class Rounded(MixedProducts):
    """Rounds what it writes."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        out.copy_(a @ b)


class Older(TorchProducts):
    """Knows no out_dtype."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out_type=out.dtype, out=out)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("products", "mixed"),
    [(MixedProducts(), True), (Narrow(), False), (Rounded(), False), (Older(), False),
     (TORCH, False)],
    ids=["mixed", "rounds sums", "rounds products", "older torch", "torch on a CPU"],
)  # fmt: skip
def test_mixed_products_are_tried(products: Any, mixed: bool) -> None:
    assert has_mixed(products, torch.device("cpu")) == mixed
