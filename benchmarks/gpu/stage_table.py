"""The stages, most valuable answers first: what each needs, and the seconds it may take."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.build_paths import built

# Of a whole run: what is rented by the ten minutes has some seconds left for its own doings.
ALL_SECONDS = 570
# A rehearsal runs wherever tests run, and takes its time where they do not have the machine alone.
REHEARSAL_SLACK = 4


@dataclass(frozen=True)
class Stage:
    name: str
    what: str
    seconds: int  # at most
    modules: tuple[str, ...] = ()  # that must be importable
    programs: tuple[str, ...] = ()  # that must be on PATH
    core: bool = True  # needs the package built from these sources
    gpu_only: bool = False  # nothing of it can be rehearsed
    # Seconds one case may take before its process is taken for hung, and begun again behind it.
    case_seconds: int = 0
    # Of all time, kept back for it by the stages before.
    kept_seconds: int = 0

    def limit(self, rehearse: bool) -> int:
        return self.seconds * (REHEARSAL_SLACK if rehearse else 1)


MEASURING = ("torch", "triton", "numpy")
STAGES = (
    Stage("environment", "the machine, its tools and versions", 45, core=False),
    Stage(
        "build", "the package, for this GPU alone", 170,
        ("pip", "scikit_build_core", "pybind11"), ("cmake", "ninja"), core=False,
    ),
    Stage("smoke", "one small call of each backend", 60, MEASURING, case_seconds=40),
    Stage("headline", "8192 x 151936: rows of every op", 130, MEASURING, case_seconds=75),
    Stage("tests", "the tests marked gpu", 120, ("torch", "numpy", "pytest", "hypothesis")),
    Stage("sizes", "rows at every size and dtype", 150, MEASURING, case_seconds=45),
    Stage("others", "the head, and all else in the registry", 110, MEASURING, case_seconds=90),
    Stage(
        "sanitizer", "memory, races, barriers on small calls", 75, ("torch",),
        ("compute-sanitizer",), gpu_only=True, case_seconds=60,
    ),
    Stage(
        "profile", "kernels of the headline calls", 60, ("torch",), gpu_only=True, case_seconds=50
    ),
    Stage("plots", "pictures", 40, ("torch", "matplotlib"), gpu_only=True, kept_seconds=20),
)  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}


def objection(
    stage: Stage,
    rehearse: bool,
    importable: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    on_path: Callable[[str], bool] = lambda name: (
        shutil.which(name) is not None or importlib.util.find_spec(name) is not None
    ),
) -> str | None:
    """Why this stage cannot run here, or None."""
    if rehearse and stage.gpu_only:
        return "needs a GPU"
    missing = [name for name in stage.modules if not importable(name)]
    if not rehearse or stage.name != "build":
        missing += [name for name in stage.programs if not on_path(name)]
    if missing:
        return f"missing: {', '.join(missing)}"
    core = built(rehearse) if stage.core else None
    return core if isinstance(core, str) else None
