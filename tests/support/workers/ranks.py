"""Workers as ranks: all at once, each to its end."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT


def run_ranks(
    worker: str,
    arguments: list[list[str]],
    seconds: int,
    package: str = "tests.support.workers",
) -> None:
    """Starts this module of the package once for each list of arguments; fails with the output of
    every rank that did not exit with 0: where one fails, others find their peer gone."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", f"{package}.{worker}", *given], cwd=ROOT,
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
