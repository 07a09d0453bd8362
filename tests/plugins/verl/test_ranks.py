"""Two ranks of verl's FSDP2 engine against one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from tests.plugins.verl.engines import one_process, save_model
from tests.plugins.verl.rank_step import taken
from tests.support.workers.ranks import run_ranks

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.mark.parametrize(
    ("mode", "tied"),
    [("vanilla", False), ("logitless/ppo", False), ("logitless/loose", True)],
)
def test_two_ranks_are_one(mode: str, tied: bool, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=tied)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "two.pt"
    common = [str(port), str(folder), mode, "2", str(out)]
    arguments = [[str(rank), "2", *common] for rank in range(2)]
    run_ranks("rank_step", arguments, seconds=180, package="tests.plugins.verl")
    two = torch.load(out)
    one_process()
    one = taken(0, 1, folder, mode, 1)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, x in one["gradients"].items():
        assert (x - two["gradients"][name]).abs().max() / x.abs().max() <= 1e-5, name
