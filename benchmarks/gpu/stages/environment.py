"""The stage `environment`: what the numbers will have been measured on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

from benchmarks.gpu.stage_process import Work
from benchmarks.harness.machine_info import cpu_model, git, installed

# What no run can do without; the rest is for the reader, and not known to every driver.
NEEDED = ("name", "driver_version", "compute_cap", "memory.total", "memory.used", "memory.free")
QUERY = (
    *NEEDED, "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.draw",
    "power.limit", "temperature.gpu", "utilization.gpu", "clocks_event_reasons.active",
    "ecc.mode.current", "mig.mode.current", "persistence_mode", "pcie.link.gen.current",
)  # fmt: skip
PACKAGES = (
    "torch", "triton", "numpy", "transformers", "pybind11", "scikit-build-core", "cmake", "ninja",
    "pytest", "hypothesis", "matplotlib", "nvidia-cublas",
)  # fmt: skip
PROGRAMS = ("nvcc", "c++", "cmake", "ninja", "compute-sanitizer", "ncu", "cuobjdump")


def said(command: list[str], seconds: float = 30) -> str | None:
    """What a program prints, or None if it cannot."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def gpus() -> list[dict[str, str]]:
    for names in (QUERY, NEEDED):
        lines = said(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
        if lines:
            rows = [line.split(", ") for line in lines.splitlines()]
            return [dict(zip(names, row, strict=False)) for row in rows]
    return []


def neighbours() -> list[str] | None:
    """Other programs on the GPU, whose work would be in the numbers."""
    lines = said(
        ["nvidia-smi", "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"]
    )
    return None if lines is None else lines.splitlines()


def tool_version(program: str) -> str | None:
    """The last line says the version of all of these, or at least something."""
    if shutil.which(program) is None:
        return None
    lines = (said([program, "--version"]) or "").splitlines()
    return (lines[0] if program in ("c++", "cmake") else lines[-1]) if lines else "present"


def facts() -> dict[str, Any]:
    return {
        "gpus": gpus(),
        "neighbours": neighbours(),
        "cpu": cpu_model(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "programs": {name: tool_version(name) for name in PROGRAMS},
        "commit": git("rev-parse", "HEAD"),
    }


def run(work: Work) -> None:
    work.each([("facts", lambda: {"facts": facts()})])
