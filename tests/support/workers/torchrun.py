"""The `logitless` command on several ranks, as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.workers import forks


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


def forked(
    ranks: int, *arguments: str | Path, folder: Path, seconds: int = 600
) -> subprocess.CompletedProcess[str]:
    """`run` without torchrun, by ranks that need not import anything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked",
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    given = [str(argument) for argument in arguments]
    with TemporaryDirectory() as logs:
        out, errors = Path(logs, "out"), Path(logs, "errors")
        started = [
            forks.start(
                rank, "logitless", given, out=out, errors=errors, folder=folder,
                preload=forks.TRAINING, RANK=str(rank), LOCAL_RANK=str(rank), **around,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        codes = forks.ends(started, seconds, together=True)
        return subprocess.CompletedProcess(
            given, max(codes, key=abs), out.read_text("utf-8"), errors.read_text("utf-8")
        )
