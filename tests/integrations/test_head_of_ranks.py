"""ll.head_of inside the engines that train on several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workers.ranks import run_ranks

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_ddp_and_fsdp2(tmp_path: Path) -> None:
    ranks = [[str(rank), "2", str(tmp_path / "store")] for rank in range(2)]
    run_ranks("model_head", ranks, 120)
