"""Workers as ranks: all at once, each to its end."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.workers import forks

PACKAGE = "tests.support.workers"


def run_ranks(
    worker: str, arguments: list[list[str]], seconds: int, package: str = PACKAGE
) -> None:
    """Starts this module of the package once for each list of arguments; fails with the output of
    every rank that did not exit with 0: where one fails, others find their peer gone."""
    # trainers may want to be imported before what we would import
    preload = forks.WORKERS if package == PACKAGE else ()
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(len(arguments))]
        ranks = [
            forks.start(
                rank, f"{package}.{worker}", given, out=output, errors=output, preload=preload
            )
            for rank, (given, output) in enumerate(zip(arguments, outputs, strict=True))
        ]
        codes = forks.ends(ranks, seconds)
        failed = [out.read_text() for out, code in zip(outputs, codes, strict=True) if code]
    assert not failed, "\n".join(failed)
