"""What contact.py measures, step by step; docs/gpu.md lists the steps.

Every figure passes a check first: values and gradients of a few rows against float64 on the device.
`Place.tiny` are the same steps with next to nothing to do, on a CPU too, where their times mean
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.contact_steps.ceilings import ceilings
from benchmarks.gpu.contact_steps.correctness import correctness
from benchmarks.gpu.contact_steps.draws import draws
from benchmarks.gpu.contact_steps.head_options import head_options
from benchmarks.gpu.contact_steps.heads import heads, tuning
from benchmarks.gpu.contact_steps.losses import losses
from benchmarks.gpu.contact_steps.masks import masks
from benchmarks.gpu.contact_steps.programs import limits, tests
from benchmarks.gpu.contact_steps.rows import rows
from benchmarks.gpu.contact_steps.streams import streams
from benchmarks.gpu.contact_steps.teacher import teacher
from benchmarks.gpu.contact_worker import Cases, Place

STEPS: dict[str, Callable[[Place], Cases]] = {
    "T1": ceilings, "T2": correctness, "T3": rows, "T4": heads, "T5": tuning, "T6": losses,
    "T7": streams, "T8": tests, "T9": limits,
    "T10": teacher, "T11": draws, "T12": masks, "T13": head_options,
}  # fmt: skip
