"""The head under DDP and FSDP2 on two processes, tied embeddings included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workers.ranks import run_ranks

torch = pytest.importorskip("torch")

# Two processes that import torch and train a thousand numbers: seconds, unless the machine is busy.
SECONDS = 240


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_are_one_process(kind: str, tied: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    run_ranks("sharded", [[kind, str(rank), store, tied] for rank in range(2)], SECONDS)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_gathered_gradients_are_those_of_one_process(ranks: int, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    run_ranks("gathered", [[str(rank), str(ranks), store] for rank in range(ranks)], SECONDS)
