"""The head under DDP and FSDP2 on two processes, tied embeddings included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

WORKER = Path(__file__).with_name("sharded_worker.py")
# Two processes that import torch and train a thousand numbers: seconds, unless the machine is busy.
SECONDS = 240


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_are_one_process(kind: str, tied: str, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), kind, str(rank), str(tmp_path / "store"), tied],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output
