"""The `logitless` command on several ranks, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(ranks: int, *arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """Runs in `folder`, whose modules are found. The caller waits for it, or kills it."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        "-m", "logitless", *map(str, arguments),
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run(
    ranks: int, *arguments: str | Path, folder: Path, seconds: int = 600
) -> subprocess.CompletedProcess[str]:
    with start(ranks, *arguments, folder=folder) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # its ranks go with it, and the test says which wait they were in
            process.terminate()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
