"""What a compiled kernel takes of a device, and what a device has."""

from __future__ import annotations

from typing import NamedTuple

# Shared memory a block may have, from the vendors' tables: CUDA C++ Programming Guide (compute
# capabilities 8.0, 9.0, 10.0), CDNA 3 ISA (local data share).
SHARED_LIMIT = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}


class Resources(NamedTuple):
    registers: str  # of a thread; on AMD vector and scalar ones
    spilled: int  # bytes of a thread that did not fit into registers
    shared: int  # bytes of a block


class Measured(NamedTuple):
    kernel: str
    configuration: str
    target: str
    resources: Resources


def objections(measured: list[Measured]) -> list[str]:
    """A line for each kernel that spills or asks for more than a block can have."""
    found = []
    for kernel, configuration, target, (_, spilled, shared) in measured:
        name = f"{kernel} ({configuration})" if configuration else kernel
        name += f" on {target}"
        if spilled:
            found.append(f"{name} spills {spilled} bytes of registers")
        if shared > SHARED_LIMIT[target]:
            found.append(f"{name} takes {shared} bytes of shared memory of {SHARED_LIMIT[target]}")
    return found
