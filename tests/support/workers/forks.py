"""Processes of Python that have imported torch already: forks of a server.

A rank imports for seconds what it then uses for one. Each number of rank has a server of its own:
ranks differ in their hash seeds, as processes that are started one by one do.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# What ranks of the tests import. It starts no threads but those of OpenBLAS, which knows of forks.
WORKERS = ("torch.distributed", "tests.support.heads", "tests.support.device.devices")
TRAINING = ("torch.distributed", "logitless.cli", "logitless.rl.demo.job",
            "transformers.models.llama.modeling_llama")  # fmt: skip


# For the end of a rank whose peer has failed, on a busy machine.
GRACE = 60


@dataclass(frozen=True)
class Fork:
    """A module of Python that runs as a program."""

    server: subprocess.Popen[str]
    pid: int

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None while it runs."""
        assert self.server.stdout is not None
        ready, _, _ = select.select([self.server.stdout], [], [], max(seconds, 0))
        return int(self.server.stdout.readline()) if ready else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait(60) is not None


def start(
    number: int,
    module: str,
    arguments: list[str],
    *,
    out: Path,
    errors: Path,
    folder: Path = ROOT,
    preload: tuple[str, ...] = WORKERS,
    **environment: str,
) -> Fork:
    """`python -m module arguments...` in `folder`, by the server of this number: one at a time."""
    around = {**os.environ, **environment}
    server = _server(number, around.get("OMP_NUM_THREADS", ""))
    assert server.stdin is not None and server.stdout is not None
    request = {
        "module": module, "arguments": arguments, "folder": str(folder), "preload": preload,
        "environment": around, "out": str(out), "errors": str(errors),
    }  # fmt: skip
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Fork(server, int(server.stdout.readline()))


def ends(forks: list[Fork], seconds: float, *, together: bool = False) -> list[int]:
    """The exit status of each. `together`: once one has failed, as with torchrun, others have no
    longer than they need for their own end."""
    deadline, codes = time.monotonic() + seconds, dict[int, int]()
    try:
        while len(codes) < len(forks):
            for i, fork in enumerate(forks):
                code = fork.wait(0.02) if i not in codes else None
                if code is not None:
                    codes[i] = code
            if together and any(codes.values()):
                deadline, together = min(deadline, time.monotonic() + GRACE), False
            if time.monotonic() > deadline:
                break
    finally:
        for i, fork in enumerate(forks):
            if i not in codes:
                fork.kill()
                codes[i] = -signal.SIGKILL
    return [codes[i] for i in range(len(forks))]


@cache
def _server(number: int, threads: str) -> subprocess.Popen[str]:
    """Ends with this process, or when that closes its input."""
    around = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})}
    # an import that asks whether there is a GPU must not open it: forks could not
    around["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    server = subprocess.Popen(
        [sys.executable, "-m", __name__], cwd=ROOT, env=around, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def _serve() -> dict[str, Any]:
    """Forks for every request. Returns in the fork, which runs it."""
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        for name in request["preload"]:
            importlib.import_module(name)
        pid = os.fork()
        if pid == 0:
            return dict(request)
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    os._exit(0)


def _run(request: dict[str, Any]) -> None:
    import random
    import runpy

    import numpy as np

    paths = (os.devnull, request["out"], request["errors"])
    for number, path in enumerate(paths):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv[1:] = request["arguments"]
    # which the server has seeded for all of its forks
    random.seed()
    np.random.seed()  # noqa: NPY002
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(_serve())
