"""When, by what and where a run was started."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

from logitless._version import __version__

# Whose numbers depend on them.
PACKAGES = ("numpy", "peft", "safetensors", "torch", "transformers")
# A commit is not worth a longer wait.
SECONDS = 10


def of_now() -> dict[str, Any]:
    """Of this process."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {package: _version(package) for package in PACKAGES}
    own = {"logitless": __version__, "python": platform.python_version()}
    return own | {package: version for package, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the git repository that the current folder is in, with "-dirty" where files that git knows
    have changed; None: it is in none, or there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
