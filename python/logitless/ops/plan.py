"""Which tiles the linear path works in, from shapes alone: same shapes, same plan, always."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Tiles are multiples of the core's block, so that any tiling gives the same bits.
from logitless.ops.rows import BLOCK

# Rows per product. Fewer cost speed: at H=1024 bf16, 128 rows take 1.4x and 512 rows 1.13x the
# time of 1024.
ROWS = 1024
# Bytes of a tile of logits: smaller ones pay more barriers (2 threads, 160 x 64 x 151936 float32:
# 183, 111 and 141 ms for 2, 4 and 8 MiB), larger ones leave the caches before they are read back.
TILE_BYTES = 4 << 20
DEFAULT_BUDGET = 512 << 20

_UNITS = {
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Plan:
    """How one head call is tiled and what that costs. Sizes in bytes; a product is N x H x V."""

    tokens: int
    hidden: int
    vocab: int
    dtype: str  # of hidden and weight
    logits_dtype: str  # in which tiles are realised
    budget: int
    rows: int  # per product
    columns: int  # of the vocabulary per tile
    kept_columns: int  # whose logits are kept from forward to backward
    scratch_bytes: int
    kept_bytes: int
    accumulator_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.scratch_bytes + self.kept_bytes + self.accumulator_bytes

    @property
    def full_logits_bytes(self) -> int:
        return self.tokens * self.vocab * _ITEMSIZE[self.logits_dtype]

    @property
    def products(self) -> float:
        """Forward and backward with every row active: 3 with all logits kept, 4 with none."""
        return 4.0 - self.kept_columns / self.vocab

    def __str__(self) -> str:
        lines = [
            f"{self.tokens} tokens x {self.hidden} hidden x {self.vocab} vocabulary, {self.dtype},"
            f" logits in {self.logits_dtype}",
            f"tiles of {self.rows} rows x {self.columns} columns; logits of {self.kept_columns}"
            f" columns kept for backward; {self.products:.2f} products",
            f"scratch {_mib(self.scratch_bytes)} + kept {_mib(self.kept_bytes)} + accumulators"
            f" {_mib(self.accumulator_bytes)} = {_mib(self.total_bytes)} of {_mib(self.budget)}",
            f"full logits would take {_mib(self.full_logits_bytes)}, and as much again for"
            " their gradient",
        ]
        return "\n".join(lines)


def _mib(n: int) -> str:
    return f"{n / 2**20:.1f} MiB"


def parse_bytes(size: int | str) -> int:
    """1024, "1024" or "256MiB" -> bytes."""
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"memory_budget must be an int or a string, got {type(size).__name__}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = (match[2] or "B").upper() if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f'memory_budget must be bytes or like "256MiB", got {size!r}')
    return int(float(match[1]) * _UNITS[unit])


def plan(
    tokens: int,
    hidden: int,
    vocab: int,
    dtype: Any = "float32",
    budget: int | str | None = None,
    *,
    logits_dtype: Any = None,
    backward: bool = True,
) -> Plan:
    """The tiling that `linear_token_stats` uses for these shapes and this memory budget.

    `dtype` and `logits_dtype` are torch dtypes or their names; `budget` as `memory_budget` there:
    None is min(512 MiB, the full logits), or one tile where that is more. Counted: scratch, kept
    tiles, float32 accumulators; not inputs, outputs or .grad. Raises ValueError below the smallest
    budget that can work.
    """
    name = _dtype_name("dtype", dtype)
    realised = name if logits_dtype is None else _dtype_name("logits_dtype", logits_dtype)
    for label, size in (("tokens", tokens), ("hidden", hidden), ("vocab", vocab)):
        if size < (0 if label == "tokens" else 1):
            raise ValueError(f"{label} must be positive, got {size}")
    item = _ITEMSIZE[realised]
    full = tokens * vocab * item

    def sizes(rows: int) -> tuple[int, int, int]:
        """(columns, scratch, accumulators) for this many rows a product."""
        fitting = TILE_BYTES // (rows * item) // BLOCK * BLOCK
        columns = min(max(fitting, BLOCK), vocab)
        # Operands in another dtype than the logits are cast tile by tile.
        cast = (columns + rows) * hidden * item if realised != name else 0
        wide = backward and realised in ("bfloat16", "float16")
        sums = 4 * hidden * (tokens + (columns if rows < tokens else 0)) if wide or cast else 0
        partial = rows * hidden * item if wide or cast else 0
        return columns, rows * columns * item + cast + partial, sums if backward else 0

    rows = max(1, min(tokens, ROWS))
    columns, scratch, accumulators = sizes(rows)
    default = max(min(DEFAULT_BUDGET, full), scratch + accumulators)
    limit = default if budget is None else parse_bytes(budget)
    while rows > 1 and scratch + accumulators > limit:
        rows = -(-rows // 2)
        columns, scratch, accumulators = sizes(rows)
    if scratch + accumulators > limit:
        raise ValueError(
            f"memory_budget must be at least {scratch + accumulators} bytes for {tokens} tokens x "
            f"{hidden} hidden x {vocab} vocabulary in {realised}, got {limit}"
        )
    room = (limit - scratch - accumulators) // (item * tokens) if backward and tokens else 0
    kept = vocab if room >= vocab else room // columns * columns
    return Plan(
        tokens, hidden, vocab, name, realised, limit, rows, columns, kept,
        scratch, kept * tokens * item, accumulators,
    )  # fmt: skip


def _dtype_name(label: str, dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _ITEMSIZE:
        raise ValueError(f"{label} must be one of {', '.join(_ITEMSIZE)}, got {dtype}")
    return name
