"""Worker scripts as ranks: all at once, each to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_ranks(worker: Path, arguments: list[list[str]], seconds: int) -> None:
    """Starts the worker once for each list of arguments; fails with the output of every rank that
    did not exit with 0: where one fails, others find their peer gone."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), *given],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for given in arguments
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [output for rank, output in zip(ranks, outputs, strict=True) if rank.returncode]
    assert not failed, "\n".join(failed)
