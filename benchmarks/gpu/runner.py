"""Runs the stages, each in a process of its own, and outlives whatever becomes of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu.build_paths import ROOT, built
from benchmarks.gpu.stage_process import AGAIN
from benchmarks.gpu.stage_table import Stage
from benchmarks.gpu.store import Store

LOG = "log.txt"
CUDA = "/usr/local/cuda"
# What one process may add to the log, of which the folder may hold 16 MiB in all.
LOG_BYTES = 500_000
# A stage whose process died under a case is begun again behind that case, this often.
LIVES = 5
# Lines of a dead process that are kept as the reason.
LAST_LINES = 12


@dataclass(frozen=True)
class Job:
    out: Path
    rehearse: bool = False


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int | None  # None: it was killed at its limit
    last_lines: tuple[str, ...]

    @property
    def reason(self) -> str:
        how = "hit its time limit" if self.code is None else f"ended with status {self.code}"
        return "\n".join([how, *self.last_lines]).replace(f"{ROOT}{os.sep}", "")


def child_command(stage: Stage, job: Job, seconds: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.stage_process", stage.name, str(job.out)]
    return [*command, f"--seconds={seconds:.0f}", *(["--rehearse"] if job.rehearse else [])]


def child_environment(job: Job) -> dict[str, str]:
    """The package just built is the one imported, and nobody asks the network for anything."""
    core = built(job.rehearse)
    paths = [*([str(core)] if isinstance(core, Path) else []), str(ROOT)]
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    more = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if job.rehearse else {}
    # Where nvcc is installed but not on the PATH.
    toolkit = [] if shutil.which("nvcc") else [f"{os.environ.get('CUDA_HOME', CUDA)}/bin"]
    return {
        **os.environ, **offline, **more,
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *toolkit]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def watch(command: Sequence[str], environment: dict[str, str], seconds: float, log: Path) -> End:
    """Runs it, shows and logs what it says, and kills it and its children at the limit."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=listen, args=(process.stdout, lines, log), daemon=True)
    reader.start()
    code: int | None
    try:
        code = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        # Also after a good end: nothing it left running may disturb the next stage.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Who left its session lives on and may hold the pipe; then it stays open.
    reader.join(timeout=5)
    if not reader.is_alive():
        process.stdout.close()
    return End(code, tuple(line.rstrip() for line in lines[-LAST_LINES:]))


def listen(pipe: IO[str], lines: list[str], log: Path) -> None:
    written = 0
    with log.open("a") as file:
        for line in pipe:
            lines.append(line)
            del lines[:-LAST_LINES]
            sys.stdout.write(f"  {line}")
            sys.stdout.flush()
            if written < LOG_BYTES:
                file.write(line)
                file.flush()
                written += len(line)


def run_stage(
    stage: Stage,
    job: Job,
    store: Store,
    deadline: float,
    command: Callable[[Stage, Job, float], list[str]] = child_command,
) -> None:
    """Until it is done, has used its time, or has died too often."""
    started = time.monotonic()
    limit = min(started + stage.limit(job.rehearse), deadline)
    store.set_stage(stage.name, status="running", limit_seconds=stage.seconds)
    for _ in range(LIVES):
        left = limit - time.monotonic()
        end = watch(command(stage, job, left), child_environment(job), left, job.out / LOG)
        victims = store.fail_running(stage.name, end.reason)
        # Only where a case took the process down is there something to go on to.
        if end.code == 0 or end.code is None or not (victims or end.code == AGAIN):
            break
    status = "done" if end.code == 0 else "timed out" if end.code is None else "failed"
    store.set_stage(
        stage.name, status=status, reason="" if end.code == 0 else end.reason,
        seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
