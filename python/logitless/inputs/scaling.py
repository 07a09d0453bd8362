"""Temperature, softcap and logit_scale in float32: what it cannot represent is refused by name.

The kernels multiply by logit_scale / temperature, or with a softcap c by logit_scale / c inside of
the tanh and c / temperature outside. Each ratio is rounded to the type that they compute in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from logitless.inputs.options import LogitTransform

# Of such a ratio, in float32 and in float64. Below the low end differences of large logits overflow
# before they are scaled down, and tanh gets arguments that lose digits; above the high end the
# gradient's coefficients overflow for upstream gradients of 1e8.
_RANGES = ((2.0**-120, 2.0**100), (2.0**-960, 2.0**960))


def _range(wide: bool) -> tuple[float, float]:
    # An index of bool is nothing that torch.compile traces before torch 2.13.
    return _RANGES[1 if wide else 0]


class _Ratio(NamedTuple):
    over: str
    under: str
    above: float
    below: float

    def fits(self, wide: bool) -> bool:
        low, high = _range(wide)
        return low <= self.above / self.below <= high

    def refusal(self, wide: bool) -> str:
        low, high = _range(wide)
        return (
            f"{self.over} / {self.under} must be between {low:.2g} and {high:.2g} in "
            f"{'float64' if wide else 'float32'} arithmetic, got {self.above} / {self.below}"
        )


def scale_range(pre: float, cap: float, wide: bool = False) -> tuple[float, float]:
    """The least and the largest `scale` beside this `pre` and `cap`, see LogitTransform."""
    low, high = _range(wide)
    return (low / min(pre, cap), high / max(pre, cap)) if cap else (low, high)


def check_scaling(op: str, head: LogitTransform, wide: bool) -> None:
    """The options that are numbers; without the temperature where it is an array."""
    single = isinstance(head.temperature, (int, float))
    temperature = float(head.temperature) if single else None
    for ratio in _ratios(head.logit_scale, head.softcap, temperature):
        if not ratio.fits(wide):
            raise ValueError(f"{op}: {ratio.refusal(wide)}")


def check_temperatures(
    op: str, values: Any, mask: Any, logit_scale: float, softcap: float | None, wide: bool
) -> None:
    """Temperatures of rows [N], torch or NumPy, where the mask [N] is true."""

    def wrong(temperature: float) -> str:
        if not 0 < temperature < float("inf"):
            return "temperature must be finite and > 0 on every row"
        ratios = _ratios(logit_scale, softcap, temperature)
        return next((ratio.refusal(wide) for ratio in ratios if not ratio.fits(wide)), "")

    used = values if mask is None else values[mask]
    if not len(used) or not (wrong(float(used.min())) or wrong(float(used.max()))):
        return
    rows = range(len(values)) if mask is None else [i for i, on in enumerate(mask.tolist()) if on]
    for row, value in zip(rows, used.tolist(), strict=True):
        if wrong(value):
            raise ValueError(f"{op}: {wrong(value)}, got temperature {value} in row {row}")


def _ratios(
    logit_scale: float, softcap: float | None, temperature: float | None
) -> Iterator[_Ratio]:
    if softcap is not None:
        yield _Ratio("logit_scale", "softcap", float(logit_scale), float(softcap))
    if temperature is None:
        return
    if softcap is not None:
        yield _Ratio("softcap", "temperature", float(softcap), temperature)
    # what gradients are multiplied by, with a softcap too
    yield _Ratio("logit_scale", "temperature", float(logit_scale), temperature)
