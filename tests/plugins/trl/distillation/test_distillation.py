"""TRL's distillation trainer: its divergence and ours, alone and in training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.integrations.trl import hooks, install
from logitless.integrations.trl.distillation.divergence import divergence_loss
from logitless.integrations.trl.distillation.replaced import DISTILLATION
from tests.plugins.trl.setting import arguments, plain_model, prompts, quiet, save_model, tokenizer
from tests.plugins.trl.whole import largest, trained

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
DIVERGENCE = "_chunked_divergence_loss"
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcaps and scales": {
        "student_logit_scale": 0.6, "teacher_logit_scale": 1.4,
        "student_final_logit_softcapping": 4.0, "teacher_final_logit_softcapping": 6.0,
    },
    "biases": {"student_lm_head_bias": True, "teacher_lm_head_bias": True},
    "tokens of the batch": {"num_items_in_batch": 37},
}  # fmt: skip


def outcome(function: Any, beta: float, dtype: torch.dtype, chain: dict[str, Any]) -> list[Tensor]:
    """Loss, entropy, count, and the gradients of hidden, weight and bias."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    hidden, weight = normal(2, 9, 16).requires_grad_(), normal(211, 16).requires_grad_()
    teacher_hidden, teacher_weight = normal(2, 9, 24), normal(211, 24)
    mask = (torch.rand(2, 9, generator=g) < 0.7).long()
    given = {k: normal(211) if v is True else v for k, v in chain.items()}
    leaves = [hidden, weight]
    if "student_lm_head_bias" in given:
        leaves.append(given["student_lm_head_bias"].requires_grad_())
    loss, entropy, count = function(
        hidden, teacher_hidden, weight, teacher_weight, mask, beta, **given
    )
    found = torch.autograd.grad(loss, leaves)
    return [x.detach().double() for x in (loss, entropy, count, *found)]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_trls(beta: float, chain: str) -> None:
    theirs = hooks.find(DISTILLATION, DIVERGENCE)
    a, b = (outcome(x, beta, torch.float32, CHAINS[chain]) for x in (theirs, divergence_loss))
    for x, y in zip(a, b, strict=True):
        assert float((x - y).abs().max()) <= 5e-6 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_sixteen_bits_are_as_far_from_thirty_two(beta: float) -> None:
    exact = outcome(divergence_loss, beta, torch.float32, {})
    theirs, ours = (
        outcome(x, beta, torch.bfloat16, {})
        for x in (hooks.find(DISTILLATION, DIVERGENCE), divergence_loss)
    )
    for x, y, right in zip(theirs, ours, exact, strict=True):
        off = [float((one - right).abs().max()) for one in (y, x)]
        assert off[0] <= 1.5 * off[1] + 2e-2 * float(right.abs().max()), off


def test_a_rank_without_tokens() -> None:
    x = torch.randn(1, 3, 8, requires_grad=True)
    w = torch.randn(50, 8)
    loss, entropy, count = divergence_loss(x, x.detach(), w, w, torch.zeros(1, 3), 1.0)
    loss.backward()
    assert loss == entropy == count == 0 and x.grad is not None and not x.grad.any()


def distillation(folder: Path, teacher: Path, **options: Any) -> Any:
    import trl

    args = arguments(
        trl.DistillationConfig, folder, max_steps=STEPS, learning_rate=2e-4,
        max_completion_length=6, **options,
    )  # fmt: skip
    with quiet():
        return trl.DistillationTrainer(
            model=plain_model(folder), teacher_model=plain_model(teacher), args=args,
            train_dataset=prompts(32), processing_class=tokenizer(),
        )  # fmt: skip


@pytest.mark.parametrize(
    "beta", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.5), pytest.param(1.0)]
)
def test_steps_of_training(beta: float, tmp_path: Path) -> None:
    """A teacher of another width."""
    folder = save_model(tmp_path / "student")
    teacher = save_model(tmp_path / "teacher", hidden_size=64, spread=1.0)
    found = []
    for ours in (False, True):
        trainer = distillation(folder, teacher, beta=beta)
        with install() if ours else contextlib.nullcontext():
            found.append(trained(trainer))
    theirs, ours_found = found
    assert len(theirs.logs) == STEPS + 1
    off = largest(theirs, ours_found)
    assert off["loss"] <= 1e-4, off
    assert all(x <= 1e-2 for x in off.values()), off
    assert all(row["loss"] > 0 for row in theirs.logs[:-1])


def test_it_is_put_back() -> None:
    theirs = hooks.find(DISTILLATION, DIVERGENCE)
    with install():
        assert hooks.find(DISTILLATION, DIVERGENCE).func is divergence_loss
    assert hooks.find(DISTILLATION, DIVERGENCE) is theirs
