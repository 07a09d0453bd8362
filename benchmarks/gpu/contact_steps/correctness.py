"""T2: who is right."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu.build_paths import ROOT
from benchmarks.gpu.contact_steps.checks import check_head, check_rows, head_inputs
from benchmarks.gpu.contact_steps.clock import BF16, F16, F32, SHORT, backends_here
from benchmarks.gpu.contact_steps.tiling import AMPLE, forced, stats_gradients
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place
from benchmarks.gpu.process_tree import kill_tree

SHAPES = (
    (1, 1), (3, 127), (2, 4097), (5, 8192), (33, 9001), (64, 2048), (16, 50_257), (7, 32_000),
    (4, 128_256), (2, 151_936), (9, 16_384), (1, 262_144),
)  # fmt: skip
KINDS = ("plain", "masked", "chain", "odd")


def correctness(place: Place) -> Cases:
    """The checks, and memcheck beside them, which ends with them."""
    sanitized = Sanitized(place)
    try:
        yield "memcheck begins", sanitized.begin
        yield from checks(place)
        yield "memcheck", sanitized.end
    finally:
        sanitized.stop()


def checks(place: Place) -> Cases:
    names, shapes = backends_here(place), SHAPES[:5] if place.tiny else SHAPES
    # Compiling takes Triton a second for each variant: the usual dtype first.
    for dtype in (BF16,) if place.tiny else (BF16, F32, F16):
        for backend in names:
            for kind in KINDS:
                key = f"rows {backend} {SHORT[dtype]} {kind}"
                yield key, functools.partial(rows_right, place, backend, dtype, kind, shapes)
    for backend in names:
        for name, kept in (("kept", 5003), ("made again", 0)):
            yield f"head {backend}, {name}", functools.partial(small_head, place, backend, kept)


def rows_right(place: Place, backend: str, dtype: torch.dtype, kind: str, shapes: Any) -> Fields:
    errors: list[float] = []
    for i, (n, v) in enumerate(shapes):
        if place.left < 1 and errors:
            break
        errors.append(check_rows(place.device, backend, n, v, dtype, kind, seed=i))
    return {"error": max(errors), "shapes": len(errors)}


def small_head(place: Place, backend: str, kept: int) -> Fields:
    import logitless as ll

    n = 17 if place.tiny else 257
    head = head_inputs(n, 64, 5003, BF16, place.device)
    with forced(n, 2048, kept):
        return {"errors": check_head(head, stats_gradients(ll, head, AMPLE, backend))}


class Sanitized:
    """compute-sanitizer over small calls, beside the checks: it leaves CPU cores free."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.process: subprocess.Popen[str] | None = None

    def begin(self) -> Fields:
        self.place.need_gpu()
        if shutil.which("compute-sanitizer") is None:
            raise Leave("no compute-sanitizer")
        command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode=86", sys.executable,
                   "-m", "benchmarks.gpu.stages.single_backend", "cuda", "small"]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        return {}

    def end(self) -> Fields:
        if self.process is None:
            raise Leave("did not begin")
        try:
            text, _ = self.process.communicate(timeout=max(self.place.left, 1))
        except subprocess.TimeoutExpired:
            self.stop()
            raise Leave("found nothing until its time was over") from None
        refused = ("not supported", "Unable to find injection")
        if any(words in text for words in refused):
            raise Leave(f"refused: {text[-200:]}")
        if self.process.returncode:
            raise AssertionError(text[-1000:])
        return {"said": text[-200:]}

    def stop(self) -> None:
        """Nothing may run beside the steps that follow."""
        if self.process is not None:
            kill_tree(self.process)
