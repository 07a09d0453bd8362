"""The machines of GPUs: a table by name, and which of them a device is."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from logitless.backends.machine import CPU, Machine

TB, MIB, GIB = 1e12, 1 << 20, 1 << 30


def _gpu(
    narrow: float, wide: float, memory: float, tile_mib: int, budget_gib: int, **others: Any
) -> Machine:
    """Rates in 1e12 per second: products of 16 bits and of float32, memory."""
    flops = {"bfloat16": narrow, "float16": narrow, "float32": wide, "float64": wide / 2}
    return Machine(
        flops={dtype: rate * TB for dtype, rate in flops.items()},
        packing_rows=0,
        page=0.0,
        stream=memory * TB,
        gathered=memory * TB / 2,
        launch=8e-6,
        cached=False,
        mixed_products=True,
        transposed_tiles=False,
        tile_rows=1 << 20,
        fixed_rows=256,
        fixed_tile_rows=4096,
        tile_bytes=tile_mib * MIB,
        column_quantum=256,
        row_quantum=64,
        weight_bytes=1 << 62,
        default_budget=budget_gib * GIB,
        shortest_chunk=1024,
        short_rows=0,
        sampled_entries=CPU.sampled_entries,
        most_sampled_entries=CPU.most_sampled_entries,
        **others,
    )


# Predicted, none of it measured by this library: rates are data sheets' times what long calls
# usually reach, as in benchmarks/gpu/predict.py; the rates of float64, which no kernel of a device
# computes in, only fill the table.
#
# launch: a product and its row kernel, until both run at full speed, assumed.
#
# gathered: rows of some KiB that lie anywhere at half the rate of a stream, assumed.
#
# tile_bytes: far more than the L2. A tile that stays there would save 1-5% of a product of width
# 1024 to 4096, and a launch for each 6-24%. 8192 rows of 16 bits and 264 MiB make 16896 columns, 64
# x 66 of a library's tiles of 128 x 256: 32 whole waves over 132 processors.
#
# shortest_chunk: below about 200 rows a product waits for the weight; some times that.
UNKNOWN = _gpu(100, 10, 1.0, 128, 1)
# The first whose name is part of a device's is the machine of the device.
GPUS = {
    "B200": _gpu(1500, 57, 6.8, 512, 4),
    "H200": _gpu(790, 50, 4.0, 264, 4),
    "H100": _gpu(725, 50, 2.9, 264, 2),
    "A100": _gpu(250, 15, 1.75, 128, 2),
    "MI300X": _gpu(600, 100, 4.0, 512, 4),
}
# Of devices of NVIDIA with another name.
BY_CAPABILITY = {(8, 0): "A100", (9, 0): "H100", (10, 0): "B200", (10, 3): "B200"}


def gpu_named(name: str, capability: tuple[int, int]) -> Machine:
    """That of a device which calls itself so. Memory that is free is no part of it: same shapes,
    same plan."""
    for known, machine in GPUS.items():
        if known in name:
            return machine
    # AMD counts its architectures by the same numbers.
    known = "" if "AMD" in name else BY_CAPABILITY.get(capability, "")
    return GPUS.get(known, UNKNOWN)


def machine_of(device: Any) -> Machine:
    """That of a device ("cuda:1", torch's or its text); of what stands in for one on a CPU: CPU."""
    kind, _, index = str(device).partition(":")
    return _asked(int(index or 0)) if kind == "cuda" else CPU


# The answer does not change.
@functools.cache
def _asked(index: int) -> Machine:
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from logitless.backends.products import TORCH, has_mixed

    # fake tensors are on devices that need not be here
    if not torch.cuda.is_available():
        return UNKNOWN
    found = torch.cuda.get_device_properties(index)
    machine = gpu_named(found.name, (found.major, found.minor))
    with unset_fake_temporarily():
        mixed = has_mixed(TORCH, torch.device("cuda", index))
    return replace(machine, mixed_products=mixed)
