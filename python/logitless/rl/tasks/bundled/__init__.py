"""Bundled rewards: their fields are the options of a recipe, a call is the reward of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from logitless.rl.tasks.bundled.implicit_prm import ImplicitPrm
from logitless.rl.tasks.bundled.laser import Laser, LaserD
from logitless.rl.tasks.bundled.math_answers import MathAnswers
from logitless.rl.tasks.bundled.plain import Format, LowerBound, OverLength, WorstCase

BUNDLED: dict[str, Callable[..., Callable[..., Any]]] = {
    "format": Format,
    "laser": Laser,
    "laser_d": LaserD,
    "over_length": OverLength,
    "worst_case": WorstCase,
    "lower_bound": LowerBound,
    "math": MathAnswers,
    "implicit_prm": ImplicitPrm,
}
