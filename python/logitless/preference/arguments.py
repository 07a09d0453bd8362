"""What a preference loss is given, checked once: arrays of one shape, some of them data."""

from __future__ import annotations

from typing import Any, NamedTuple

from logitless.advantages.arguments import demand
from logitless.inputs.arrays import check_dtype, framework, shape_of
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.gradients import is_traced, refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.tokens import Array, Bools, Float64s
from logitless.inputs.weights import FLOATS
from logitless.preference.arrays import arrays_of


class Given(NamedTuple):
    """float64 with their gradient; 0 where nothing counts."""

    xp: Any
    values: dict[str, Float64s]
    # of results: float64 where the first is, else float32
    dtype: Any
    # None: everything counts
    mask: Bools | None

    def result(self, values: Float64s) -> Array:
        return self.xp.cast(values, self.dtype)


def given_floats(
    op: str,
    shape: str,
    arrays: dict[str, Array | None],
    *,
    data: tuple[str, ...] = (),
    mask: Array | None = None,
) -> Given:
    """`arrays` are floats shaped like the first of them, `shape` in letters; None are left out.
    Those named in `data` get no gradient."""
    some = {name: x for name, x in arrays.items() if x is not None}
    framework(op, {"mask": mask}, **some)
    first, leading = next(iter(some.items()))
    expected = shape_of(leading)
    if len(expected) != shape.count(",") + 1:
        raise ValueError(f"{first} must be {shape}, got shape {list(expected)}")
    refuse_grad(**{name: some[name] for name in data if name in some})
    xp = arrays_of(leading)
    counts = None if mask is None else _truths(xp, first, expected, mask)
    values = {}
    for name, x in some.items():
        if shape_of(x) != expected:
            raise ValueError(
                f"{name} must be shaped like {first}, {list(expected)}, got {shown(x)}"
            )
        check_dtype(op, name, x, *FLOATS)
        value = xp.cast(x, xp.float64)
        if on_host(x):
            good = xp.isfinite(value) if counts is None else xp.isfinite(value) | ~counts
            demand(xp, name, xp.data(value), good, "finite")
        values[name] = value if counts is None else xp.where(counts, value, 0.0)
    dtype = xp.float64 if leading.dtype == xp.float64 else xp.float32
    return Given(xp, values, dtype, counts)


def on_host(x: Array) -> bool:
    """Whether its values may be looked at: of a device they would be waited for."""
    return not is_tensor(x) or (x.is_cpu and not is_traced(x))


def _truths(xp: Any, name: str, shape: tuple[int, ...], mask: Array) -> Bools:
    if shape_of(mask) != shape:
        raise ValueError(f"mask must be shaped like {name}, {list(shape)}, got {shown(mask)}")
    mask = as_mask(mask)
    if xp.kind(mask.dtype) != "b":
        raise TypeError(f"mask must be bool, got {shown(mask)}")
    return xp.truths(mask)
