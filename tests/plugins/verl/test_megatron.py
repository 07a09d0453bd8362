"""The head under verl's Megatron engine: Megatron's models and collectives on a CPU, against what
verl computes of their logits."""

from __future__ import annotations

import socket
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.plugins.verl.setting  # noqa: F401  (verl, on a CPU)
from logitless.integrations.verl import megatron
from tests.support.workers.ranks import run_ranks

pytest.importorskip("megatron.core", reason="megatron-core is not installed: ./dev plugins has it")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_scores_and_gradients_are_those_of_the_logits(world: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [[str(rank), str(world), str(port), str(tmp_path / "on")] for rank in range(world)]
    run_ranks("megatron_step", arguments, seconds=180, package="tests.plugins.verl")
    for rank in range(world):
        results = torch.load(tmp_path / f"on.{rank}")
        assert len(results) == 2 * world
        for setting, (expected, found, by_hook) in results.items():
            assert expected["entropy"].mean() > 0.3
            for name in ("logp", "entropy"):
                torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(by_hook, expected["logp"], atol=1e-5, rtol=1e-5)
            assert found["gradients"].keys() == expected["gradients"].keys()
            for name, x in expected["gradients"].items():
                error = (found["gradients"][name] - x).abs().max()
                assert error <= 1e-5 * x.abs().max() + 1e-7, (setting, name)


class Theirs(torch.autograd.Function):
    """With the parameters of verl's."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        reduction: str = "none",
        dist_process_group: Any = None,
    ) -> Any:
        return hidden.new_full((), 7.0), hidden.new_full((), 8.0)


def replaced(function: Any = Theirs.apply) -> Any:
    module = types.ModuleType("theirs")
    module.linear_cross_entropy = function  # type: ignore[attr-defined]
    megatron.replace_cross_entropy(module)
    return module.linear_cross_entropy


HIDDEN, LABELS = torch.randn(5, 1, 4), torch.arange(5)[None]


def marked() -> Tensor:
    weight = torch.randn(9, 4)
    setattr(weight, megatron.MARK, megatron.MegatronHead(partial_hidden=False))
    return weight


def test_a_weight_without_a_mark_is_verls_to_serve() -> None:
    head = replaced()
    assert [float(x) for x in head(HIDDEN, torch.randn(9, 4), LABELS, 1.0, "none", None)] == [7, 8]
    weight = marked()
    logp, _ = head(HIDDEN, weight, LABELS, 0.5, "none", None)
    expected = (HIDDEN[:, 0] @ weight.T / 0.5).log_softmax(-1).gather(1, LABELS.T)[:, 0]
    torch.testing.assert_close(logp, expected)


def test_what_megatrons_head_is_not_given_is_refused() -> None:
    head = replaced()
    with pytest.raises(ValueError, match="reduction must be 'none', got 'mean'"):
        head(HIDDEN, marked(), LABELS, 1.0, "mean", None)
    with pytest.raises(ValueError, match=r"packed into one row.*got \(5, 1\)"):
        head(HIDDEN, marked(), LABELS.T, 1.0, "none", None)


def test_an_unknown_cross_entropy_is_named() -> None:
    with pytest.raises(ImportError, match=r"looked for theirs\.linear_cross_entropy.*found"):
        replaced(lambda hidden, weight: None)
