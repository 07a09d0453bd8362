"""The stage `sanitizer`: NVIDIA's checkers over small calls of the CUDA kernels."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

from benchmarks.gpu.stage_process import Leave, Work
from benchmarks.gpu.store import DONE, FAILED

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# What the program returns if a tool found something.
FOUND = 86
CHARACTERS = 4000
# Said where the machine does not let any tool near its GPU, which is no finding.
REFUSALS = ("Device not supported", "Unable to find injection", "not supported on this")


def check(tool: str) -> dict[str, Any]:
    program = [sys.executable, "-m", "benchmarks.gpu.stages.single_backend", "cuda", "small"]
    command = ["compute-sanitizer", "--tool", tool, f"--error-exitcode={FOUND}", *program]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    text = (answer.stdout + answer.stderr)[-CHARACTERS:]
    for refusal in REFUSALS:
        if refusal in text:
            raise Leave(f"compute-sanitizer: {refusal}")
    good = answer.returncode == 0
    reason = "" if good else f"found something, or failed (status {answer.returncode})"
    return {"status": DONE if good else FAILED, "reason": reason, "text": text}


def run(work: Work) -> None:
    work.each([(tool, functools.partial(check, tool)) for tool in TOOLS])
