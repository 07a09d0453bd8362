"""What someone needs who wants to see the same numbers; all but `machine` without torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def machine(device: str, libraries: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks.harness.timing import last_level_cache

    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache(device),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **libraries,
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len((git("status", "--porcelain") or "").splitlines()),
        "command": " ".join([program(), *sys.argv[1:]]),
    }


def program() -> str:
    spec = sys.modules["__main__"].__spec__
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return "./dev bench" if name == "benchmarks.run" else f"python -m {name}"
