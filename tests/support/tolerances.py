"""The one table of floors, and the one way to compare.

The rule: our error against the float64 oracle may be at most twice that of plain torch code in the
same dtype, plus a floor. The floor of logp, entropy and lse for float32 logits is 4e-6 + 1 ulp;
16-bit logits are the same numbers, exactly widened, so they share it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# dtype -> (absolute floor of values, absolute and relative floor of gradients as stored)
VALUE_FLOOR = {"float32": 4e-6, "bfloat16": 4e-6, "float16": 4e-6, "float64": 1e-12}
GRADIENT_FLOOR = {"float32": 1e-6, "bfloat16": 1e-6, "float16": 1e-6, "float64": 1e-13}
# Half a unit in the last place of what a gradient is stored in, twice over.
GRADIENT_ULP = {"float32": 2**-22, "bfloat16": 2**-8, "float16": 2**-10, "float64": 2**-50}


def dtype_name(dtype: Any) -> str:
    return str(np.dtype(dtype) if isinstance(dtype, type) else dtype).removeprefix("torch.")


def as_float64(array: Any) -> Any:
    if hasattr(array, "detach"):
        return array.detach().double().cpu().numpy()
    return np.asarray(array, np.float64)


def assert_values(ours: Any, truth: Any, dtype: Any, *, plain: Any = None) -> None:
    """Values within the floor plus one float32 ulp (plus twice the plain code's own error)."""
    truth = as_float64(truth)
    name = dtype_name(dtype)
    ulp = np.abs(truth) * (2**-23 if name != "float64" else 2**-50)
    _assert_within(ours, truth, VALUE_FLOOR[name] + ulp + _slack(plain, truth))


def assert_gradients(
    ours: Any, truth: Any, dtype: Any, *, plain: Any = None, scale: float = 1.0
) -> None:
    """Gradients within their storage rounding and floor, both times the problem's `scale`."""
    truth = as_float64(truth)
    name = dtype_name(dtype)
    allowed = scale * GRADIENT_FLOOR[name] + np.abs(truth) * GRADIENT_ULP[name]
    _assert_within(ours, truth, allowed + _slack(plain, truth))


def _slack(plain: Any, truth: Any) -> Any:
    return 0.0 if plain is None else 2 * np.abs(as_float64(plain) - truth)


def _assert_within(ours: Any, truth: Any, allowed: Any) -> None:
    ours = as_float64(ours)
    assert ours.shape == truth.shape, f"shape {ours.shape}, expected {truth.shape}"
    with np.errstate(invalid="ignore"):
        error = np.abs(ours - truth)
    # Equal infinities differ by NaN, and are fine.
    bad = ~((error <= allowed) | (ours == truth))
    if bad.any():
        excess = np.where(np.isnan(error), np.inf, error - allowed)
        worst = np.unravel_index(np.argmax(np.where(bad, excess, -np.inf)), bad.shape)
        allowance = np.broadcast_to(allowed, bad.shape)[worst]
        raise AssertionError(
            f"{int(bad.sum())} of {bad.size} beyond tolerance; worst at {worst}: "
            f"{ours[worst]} against {truth[worst]}, error {error[worst]:.3g}, "
            f"allowed {allowance:.3g}"
        )


def assert_bitwise_equal(a: Any, b: Any) -> None:
    """Same bits, NaN included; names how many differ, the first place and both values."""
    a, b = (
        np.ascontiguousarray(x.detach().double().cpu() if hasattr(x, "detach") else x).ravel()
        for x in (a, b)
    )
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    bytes_a, bytes_b = (x.view(np.uint8).reshape(x.size, x.itemsize) for x in (a, b))
    differs = (bytes_a != bytes_b).any(1)
    if differs.any():
        first = int(np.argmax(differs))
        raise AssertionError(
            f"{int(differs.sum())} of {a.size} differ; first at {first}: "
            f"{a[first]!r} and {b[first]!r}"
        )
