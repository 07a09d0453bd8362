"""Valid calls of rows over sets of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Rng

STATE = 8


def _sets(rng: Rng, rows: int, columns: int, dtype: Any) -> dict[str, Any]:
    """Of each row some columns, ascending."""
    sizes = rng.integers(0, min(columns, 90) + 1, rows)
    some = [np.sort(rng.permutation(columns)[:size]) for size in sizes]
    return {
        "offsets": np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        "columns": np.concatenate([np.empty(0), *some]).astype(np.int32),
        "values": rng.normal(size=int(sizes.sum())).astype(dtype),
    }


def _kinds(rng: Rng) -> tuple[Any, Any]:
    """dtype of a matrix, and of what is computed of it."""
    matrix = np.dtype(str(rng.choice(["f4", "f2", "f8"])))
    return matrix, np.dtype("f8") if matrix == np.float64 else np.dtype("f4")


def logits(core: Any, rng: Rng) -> Case:
    rows, columns = int(rng.integers(0, 7)), int(rng.integers(0, 300))
    hidden = int(rng.choice([1, rng.integers(2, 80), 260]))
    dtype, wide = _kinds(rng)
    more = {
        "hidden": rng.normal(size=(rows, hidden)).astype(dtype),
        "weight": rng.normal(size=(columns, hidden)).astype(dtype),
        "threads": int(rng.integers(0, 4)),
    }
    return Case("sets.logits", {**_sets(rng, rows, columns, wide), **more}, ("values",))


def _tile(rng: Rng) -> dict[str, Any]:
    """A tile that holds some of the columns, perhaps none."""
    rows, columns = int(rng.integers(0, 7)), int(rng.integers(0, 300))
    dtype, wide = _kinds(rng)
    width = int(rng.integers(0, 200))
    return {
        **_sets(rng, rows, columns, wide),
        "tile": rng.normal(size=(rows, width)).astype(dtype),
        "start": int(rng.integers(0, columns + 1)),
        "threads": int(rng.integers(0, 4)),
    }


def read_tile(core: Any, rng: Rng) -> Case:
    return Case("sets.read_tile", _tile(rng), ("values",))


def write_tile(core: Any, rng: Rng) -> Case:
    return Case("sets.write_tile", _tile(rng), ("tile",))


def _rows(rng: Rng) -> dict[str, Any]:
    """Now and then more entries than a block."""
    n, columns = int(rng.integers(0, 7)), int(rng.choice([90, 5000]))
    found = _sets(rng, n, columns, rng.choice(["f4", "f8"]))
    if columns == 5000 and n:
        found["offsets"] = np.arange(n + 1) * columns
        found["columns"] = np.tile(np.arange(columns), n).astype(np.int32)
        found["values"] = rng.normal(size=n * columns).astype(found["values"].dtype)
    own = {
        "n": n, "targets": rng.integers(0, columns, n), "scale": float(rng.uniform(0.2, 3)),
        "row_scale": rng.uniform(0.2, 3, n) if rng.random() < 0.5 else None,
        "softcap": float(rng.choice([0, 5])), "pre": 1.0, "threads": int(rng.integers(0, 4)),
    }  # fmt: skip
    return {**{f"own.{key}": value for key, value in own.items()}, **found}


def forward(core: Any, rng: Rng) -> Case:
    arguments = _rows(rng)
    more = {"state": np.zeros((arguments["own.n"], STATE)), "extras": bool(rng.integers(2))}
    return Case("sets.forward", {**arguments, **more}, ("state",))


def gradient(core: Any, rng: Rng) -> Case:
    arguments = _rows(rng)
    n = arguments["own.n"]
    own = {k.removeprefix("own."): v for k, v in arguments.items() if k.startswith("own.")}
    state = np.zeros((n, STATE))
    csr = (arguments[name] for name in ("offsets", "columns", "values"))
    core.sets.forward(core.rows.Rows(**own), *csr, state)
    more = {
        "state": state,
        "gradient": np.zeros_like(arguments["values"]),
        **{
            name: rng.normal(size=n) if rng.random() < 0.7 else None
            for name in ("g_logp", "g_entropy", "g_lse")
        },
    }
    return Case("sets.gradient", {**arguments, **more}, ("gradient",))


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "sets.logits": logits,
    "sets.read_tile": read_tile,
    "sets.write_tile": write_tile,
    "sets.forward": forward,
    "sets.gradient": gradient,
}
