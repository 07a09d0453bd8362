"""The check of the row kernels on 64-bit Arm says what it lacks, where it lacks it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "cross" / "neon.sh"


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / name).symlink_to(program)
    run = subprocess.run(
        [tmp_path / "bash", SCRIPT], env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 77, run.stderr
    assert run.stdout.startswith("skipped: aarch64-linux-gnu-g++ is not on PATH")
