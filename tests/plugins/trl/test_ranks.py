"""Two ranks against one: trainers under accelerate's DDP, the head under FSDP2."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.trl.distillation.distill_step import gradients
from tests.plugins.trl.rank_step import sharded, trained
from tests.plugins.trl.setting import save_model
from tests.support.workers.ranks import run_ranks

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def of_two(program: str, folder: Path, *given: str) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / "two.pt"
    common = [str(port), str(folder / "model"), *given, str(out)]
    arguments = [[str(rank), "2", *common] for rank in range(2)]
    run_ranks(program, arguments, seconds=180, package="tests.plugins.trl")
    return torch.load(out)


@pytest.mark.parametrize(
    ("way", "loss", "engine"),
    [
        ("head", "", "ddp"),
        ("loss", "", "ddp"),
        ("loss", "kl_cov", "ddp"),
        ("loss", "", "fsdp2"),
        ("head", "", "fsdp2, own group"),
        ("head", "", "fsdp2 of accelerate"),
        ("loss", "", "fsdp2 of accelerate"),
        ("loss", "", "fsdp2 of accelerate, tied"),
    ],
)
def test_two_ranks_are_one(way: str, loss: str, engine: str, tmp_path: Path) -> None:
    engine, tied, _ = engine.partition(", tied")
    folder = save_model(tmp_path / "model", tie_word_embeddings=bool(tied))
    two = of_two("rank_step", tmp_path, way, loss, engine)
    if engine == "ddp":
        one = trained(0, 1, folder, way, loss)
    else:
        one = sharded(0, 1, folder, way, engine)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, x in one["gradients"].items():
        off = (x - two["gradients"][name]).abs().max() / x.abs().max()
        # The weights' own rounding is in what they moved.
        assert off <= (3e-5 if engine == "ddp" else 1e-5), name
    assert one["logs"].keys() == two["logs"].keys()
    if loss:
        for name in ("loss", "actor/pg_loss", "actor/ppo_kl", "actor/cov_mean"):
            if name in one["logs"]:
                assert one["logs"][name] == pytest.approx(two["logs"][name], abs=1e-5), name


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("gkd", "ddp"),
        ("sdft", "ddp"),
        ("distillation", "ddp"),
        ("gkd", "fsdp2, own group"),
        ("sdft", "fsdp2"),
        ("distillation", "fsdp2"),
        ("distillation", "fsdp2, own group"),
        ("gkd", "fsdp2 of accelerate"),
        ("distillation", "fsdp2 of accelerate"),
    ],
)
def test_two_ranks_of_distillation_are_one(kind: str, engine: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    teacher = save_model(tmp_path / "teacher", hidden_size=64)
    two = of_two("distillation.distill_step", tmp_path, str(teacher), kind, engine)
    one = gradients(0, 1, folder, teacher, kind, engine)
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert (x - two[name]).abs().max() / x.abs().max() <= 1e-5, name
