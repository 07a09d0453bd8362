"""Every number of a machine that the planner of the head asks for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from logitless.backends.row_kernels.rows import BLOCK


# Compared by identity: two machines of the same numbers may be given different strategies.
@dataclass(frozen=True, eq=False)
class Machine:
    """Sizes of tiles, and the speeds that decide between products and memory: of these only the
    ratios matter."""

    flops: Mapping[str, float]  # per second of a product, by dtype
    # A product packs its operands, which takes as long as this many rows more.
    packing_rows: int
    page: float  # seconds that a byte held is worth
    stream: float  # bytes per second, memory already there
    # Seconds that a product costs beside its work.
    launch: float
    # Whether a tile, and a sum of gradients, is in the caches still when it is read. Where not,
    # logits that are all kept are one tile.
    cached: bool
    # Whether products of 16-bit operands may be written, and added up, in float32.
    mixed_products: bool
    # Whether products of 16-bit tiles may want these transposed first.
    transposed_tiles: bool
    # Rows per tile, and per product. Fewer cost speed.
    tile_rows: int
    # Rows per product, and per tile, where all products have one shape, whatever the batch:
    # batch_invariant.
    fixed_rows: int
    fixed_tile_rows: int
    # Bytes of a tile of logits.
    tile_bytes: int
    # Columns of a tile are a multiple of this, and what lies between its rows of this.
    column_quantum: int
    row_quantum: int
    # Bytes of the rows of weight that belong to a tile, and so of the partial sums of d_weight.
    weight_bytes: int
    # memory_budget=None, in bytes, where all logits take more.
    default_budget: int
    # Rows of the shortest chunk of the one-pass: below, products cost too much.
    shortest_chunk: int
    # Up to this many rows of bfloat16, weight x hidden is the faster product.
    short_rows: int
    # Largest logits kept of a row to draw from where top_p alone limits it, and of any row.
    sampled_entries: int
    most_sampled_entries: int
    # Bytes per second of rows of weight that lie anywhere, with their products.
    gathered: float = 10e9
    # The 16-bit dtypes that products are slow in: they are multiplied in float32, which logits are
    # then too, unless the caller says otherwise. Asked where a call has such.
    widened: Callable[[], frozenset[str]] = frozenset
    # (problem, whether it may be one-pass) -> the strategies to choose from, or None for the
    # planner's own: forces one, in a test or a study
    strategies: Callable[[Any, bool], list[Any] | None] | None = None

    def logits_dtype(self, dtype: str) -> str:
        """In which logits of such inputs are realised where the caller does not say."""
        narrow = dtype in ("bfloat16", "float16")
        return "float32" if narrow and dtype in self.widened() else dtype


# One object for each machine.
@functools.cache
def in_blocks(machine: Machine) -> Machine:
    """The same with tiles of whole blocks of the vocabulary."""
    quantum = math.lcm(machine.column_quantum, BLOCK)
    return (
        machine if quantum == machine.column_quantum else replace(machine, column_quantum=quantum)
    )


# The answer does not change.
@functools.cache
def _slow_products() -> frozenset[str]:
    """Those that this CPU has no instructions for. torch multiplies them by loops of its own, which
    take many times as long as float32, most where neither operand is transposed: docs/head.md."""
    try:
        import torch
    except ImportError:
        # nor are there tensors of them
        return frozenset()
    if not torch.backends.mkldnn.is_available():
        return frozenset({"bfloat16", "float16"})
    ask = torch.ops.mkldnn
    has = {
        "bfloat16": ask._is_mkldnn_bf16_supported(), "float16": ask._is_mkldnn_fp16_supported()
    }  # fmt: skip
    return frozenset(dtype for dtype, found in has.items() if not found)


# Two cores of an AMD EPYC (Zen 4, 32 MB of L3) under Linux, torch 2.13: the best of four runs of
# python -m benchmarks.studies.cost_model. bfloat16 has instructions of its own there, float16 has
# none. Memory that the system has to hand out costs 0.5e-9; most calls find that of the last one
# (memory.py), and two fifths of it make the leaner way win where two take the same time:
# 160 x 64 x 151936 float32 (88 ms kept, 87 recomputed), but not 1024 x 256 in bfloat16 (493 and
# 570 ms).
#
# tile_bytes: smaller tiles pay more barriers (2 threads, 160 x 64 x 151936 float32: 183, 111 and
# 141 ms for 2, 4 and 8 MiB), larger ones leave the caches before they are read back.
#
# column_quantum: tiles are multiples of the core's block, so that any tiling gives the same bits.
#
# short_rows: weight x hidden packs hidden, where hidden x weight packs the whole weight. Of
# bfloat16, width 1024, over 151936 columns, on 2 threads with AMX: 64 rows 25 ms instead of 46, and
# 3 to transpose the tiles; 256 rows 45 instead of 76, and 11. Of float32 both take the same.
CPU = Machine(
    flops={"bfloat16": 0.93e12, "float32": 0.21e12, "float16": 0.055e12, "float64": 0.11e12},
    packing_rows=20,
    page=0.2e-9,
    stream=65e9,
    launch=0.0,
    cached=True,
    mixed_products=False,
    transposed_tiles=True,
    tile_rows=1024,
    fixed_rows=256,
    fixed_tile_rows=1024,
    tile_bytes=4 << 20,
    column_quantum=BLOCK,
    row_quantum=1,
    weight_bytes=8 << 20,
    default_budget=512 << 20,
    shortest_chunk=64,
    short_rows=256,
    sampled_entries=256,
    most_sampled_entries=1024,
    widened=_slow_products,
)
