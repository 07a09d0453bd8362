"""Valid calls of rows over sets of the vocabulary."""

from __future__ import annotations

import functools
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


def _kinds(rng: Rng, cuda: bool) -> tuple[Any, Any]:
    """dtype of a matrix, and of what is computed of it."""
    matrix = np.dtype(str(rng.choice(["f4", "f2"] if cuda else ["f4", "f2", "f8"])))
    return matrix, np.dtype("f8") if matrix == np.float64 else np.dtype("f4")


def _where(rng: Rng, cuda: bool) -> dict[str, int]:
    return {"device": 0} if cuda else {"threads": int(rng.integers(0, 4))}


def _name(function: str, cuda: bool) -> str:
    return f"sets.{'cuda_' * cuda}{function}"


def logits(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    rows, columns = int(rng.integers(0, 7)), int(rng.integers(0, 300))
    hidden = int(rng.choice([1, rng.integers(2, 80), 260]))
    dtype, wide = _kinds(rng, cuda)
    more = {
        "hidden": rng.normal(size=(rows, hidden)).astype(dtype),
        "weight": rng.normal(size=(columns, hidden)).astype(dtype),
        **_where(rng, cuda),
    }
    return Case(_name("logits", cuda), {**_sets(rng, rows, columns, wide), **more}, ("values",))


def _tile(rng: Rng, cuda: bool) -> dict[str, Any]:
    """A tile that holds some of the columns, perhaps none."""
    rows, columns = int(rng.integers(0, 7)), int(rng.integers(0, 300))
    dtype, wide = _kinds(rng, cuda)
    width = int(rng.integers(0, 200))
    return {
        **_sets(rng, rows, columns, wide),
        "tile": rng.normal(size=(rows, width)).astype(dtype),
        "start": int(rng.integers(0, columns + 1)),
        **_where(rng, cuda),
    }


def read_tile(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    return Case(_name("read_tile", cuda), _tile(rng, cuda), ("values",))


def write_tile(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    return Case(_name("write_tile", cuda), _tile(rng, cuda), ("tile",))


def _rows(rng: Rng, cuda: bool) -> dict[str, Any]:
    """Now and then more entries than a block."""
    n, columns = int(rng.integers(0, 7)), int(rng.choice([90, 5000]))
    found = _sets(rng, n, columns, "f4" if cuda else rng.choice(["f4", "f8"]))
    if columns == 5000 and n:
        found["offsets"] = np.arange(n + 1) * columns
        found["columns"] = np.tile(np.arange(columns), n).astype(np.int32)
        found["values"] = rng.normal(size=n * columns).astype(found["values"].dtype)
    own = {
        "n": n, "targets": rng.integers(0, columns, n), "scale": float(rng.uniform(0.2, 3)),
        "row_scale": rng.uniform(0.2, 3, n) if rng.random() < 0.5 else None,
        "softcap": float(rng.choice([0, 5])), "pre": 1.0, **_where(rng, cuda),
    }  # fmt: skip
    return {**{f"own.{key}": value for key, value in own.items()}, **found}


def forward(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    arguments = _rows(rng, cuda)
    more = {"state": np.zeros((arguments["own.n"], STATE)), "extras": bool(rng.integers(2))}
    return Case(_name("forward", cuda), {**arguments, **more}, ("state",))


def gradient(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    arguments = _rows(rng, cuda)
    n = arguments["own.n"]
    own = {k.removeprefix("own."): v for k, v in arguments.items() if k.startswith("own.")}
    # on the CPU: what CUDA's kernels leave differs by rounding only
    own.pop("device", None)
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
    return Case(_name("gradient", cuda), {**arguments, **more}, ("gradient",))


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    _name(maker.__name__, cuda): functools.partial(maker, cuda=cuda)
    for cuda in (False, True)
    for maker in (logits, read_tile, write_tile, forward, gradient)
}
