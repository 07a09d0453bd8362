"""Measures the numbers of `logitless.backends.machine.CPU`.

python -m benchmarks.studies.cost_model [threads]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

# The best of a few: what else the machine does only adds.
RUNS = 4
N, H, V, TILE = 1024, 1024, 16384, 2048
FRESH_BYTES = 256 << 20
DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def product_rate(dtype: torch.dtype, rows: int) -> float:
    """FLOP/s of hidden x weight.T, tile by tile into memory that is there."""
    hidden, weight = torch.randn(rows, H).to(dtype), torch.randn(V, H).to(dtype)
    out = torch.empty(rows, TILE, dtype=dtype)

    def run() -> None:
        for start in range(0, V, TILE):
            torch.mm(hidden, weight[start : start + TILE].t(), out=out)

    return 2.0 * rows * H * V / best(run)


def page_seconds() -> float:
    """Per byte of memory written for the first time, beyond writing it again."""

    def fresh() -> None:
        torch.empty(FRESH_BYTES, dtype=torch.uint8).fill_(1)

    there = torch.zeros(FRESH_BYTES, dtype=torch.uint8)
    return (best(fresh) - best(lambda: there.fill_(1))) / FRESH_BYTES


def stream_rate() -> float:
    """Bytes per second, read and written, of memory that does not fit the caches."""
    there = torch.zeros(FRESH_BYTES // 4)
    return 2.0 * FRESH_BYTES / best(lambda: there.add_(1.0))


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in DTYPES:
        print(f"{dtype!s:<16} {product_rate(dtype, N) / 1e12:6.3f} TFLOP/s, {N} rows")
    for rows in (64, 128, 256, 512):
        print(
            f"{'torch.bfloat16':<16} {product_rate(torch.bfloat16, rows) / 1e12:6.3f}, {rows} rows"
        )
    print(f"{'fresh pages':<16} {page_seconds() * 1e9:6.3f} ns per byte")
    print(f"{'stream':<16} {stream_rate() / 1e9:6.1f} GB/s")


if __name__ == "__main__":
    main()
