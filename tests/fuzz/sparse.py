"""Valid calls of the products with sparse rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Rng


def _matrix(rng: Rng, rows: int, columns: int) -> dict[str, Any]:
    counts = rng.integers(0, 5, rows) if columns else np.zeros(rows, np.int64)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    entries = int(offsets[-1])
    return {
        "offsets": offsets,
        "columns": rng.integers(0, max(columns, 1), entries).astype(np.int32),
        "values": rng.normal(size=entries).astype(rng.choice(["f4", "f8"])),
    }


def _sizes(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(0, 7)), int(rng.integers(0, 30))


def transpose(core: Any, rng: Rng) -> Case:
    rows, columns = _sizes(rng)
    matrix = _matrix(rng, rows, columns)
    n = matrix["values"].size
    more = {
        "row_names": np.arange(rows, dtype=np.int32), "scratch": np.zeros(columns + 1, np.int32),
        "out_offsets": np.zeros(n + 1, np.int64), "out_names": np.zeros(n, np.int32),
        "out_columns": np.zeros(n, np.int32), "out_values": np.zeros_like(matrix["values"]),
    }  # fmt: skip
    written = ("scratch", "out_offsets", "out_names", "out_columns", "out_values")
    return Case("topk.sparse_transpose", {**matrix, **more}, written)


def multiply(core: Any, rng: Rng) -> Case:
    rows, columns = _sizes(rng)
    matrix = _matrix(rng, rows, columns)
    wide = matrix["values"].dtype == np.float64
    dtype = np.dtype("f8") if wide else np.dtype(str(rng.choice(["f4", "f2"])))
    hidden = int(rng.choice([1, rng.integers(2, 80), 2060]))
    more = {
        "names": np.sort(rng.permutation(rows + 3)[:rows]).astype(np.int32),
        "dense": rng.normal(size=(columns, hidden)).astype(dtype),
        "out": np.zeros((rows + 3, hidden), dtype),
        "add": bool(rng.integers(2)),
        "threads": int(rng.integers(0, 4)),
    }
    return Case("topk.sparse_multiply", {**matrix, **more}, ("out",))


def add_row_sums(core: Any, rng: Rng) -> Case:
    rows, columns = _sizes(rng)
    matrix = _matrix(rng, rows, columns)
    more = {
        "names": rng.integers(0, rows + 3, rows).astype(np.int32),
        "out": np.zeros(rows + 3, matrix["values"].dtype),
    }
    return Case("topk.sparse_add_row_sums", {**matrix, **more}, ("out",))


# ---- on a device, or its emulation


def cuda_multiply(core: Any, rng: Rng) -> Case:
    case = multiply(core, rng)
    given = case.arguments
    del given["threads"]
    rows, entries = len(given["names"]), given["values"].size
    for name in ("values", "dense", "out"):
        given[name] = given[name].astype("f4" if name == "values" else rng.choice(["f4", "f2"]))
    slots = 2 * entries // core.topk.CHAIN
    chained = bool(rng.integers(2))
    given["chains"] = np.zeros(rows, np.int64) if chained else None
    given["sums"] = np.zeros((slots, given["dense"].shape[1]), np.float32) if chained else None
    return Case("topk.cuda_sparse_multiply", given, ("out", "sums"))


def cuda_add_row_sums(core: Any, rng: Rng) -> Case:
    given = add_row_sums(core, rng).arguments
    given.update({name: given[name].astype(np.float32) for name in ("values", "out")})
    return Case("topk.cuda_sparse_add_row_sums", given, ("out",))


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "topk.sparse_transpose": transpose,
    "topk.sparse_multiply": multiply,
    "topk.sparse_add_row_sums": add_row_sums,
    "topk.cuda_sparse_multiply": cuda_multiply,
    "topk.cuda_sparse_add_row_sums": cuda_add_row_sums,
}
