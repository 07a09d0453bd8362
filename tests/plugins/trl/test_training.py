"""Whole trainings, eight optimizer steps: TRL's trainers as they are and with this library."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.integrations.trl import install
from tests.plugins.trl.setting import (
    arguments,
    grpo,
    plain_model,
    prompts,
    quiet,
    reward,
    save_model,
    tokenizer,
)
from tests.plugins.trl.whole import largest, trained

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 8


def test_eight_steps_of_grpo(tmp_path: Path) -> None:
    """The same completions are sampled in all of them, so the same rewards are seen."""
    folder = save_model(tmp_path)
    args = {
        "max_steps": STEPS, "gradient_accumulation_steps": 2, "num_iterations": 2,
        "loss_type": "dapo", "learning_rate": 1e-3, "seed": 1,
    }  # fmt: skip
    theirs, head, loss = (trained(grpo(way, folder, **args)) for way in ("trl", "head", "loss"))
    assert len(theirs.logs) == STEPS + 1
    start = plain_model(folder)
    moved = max((p - theirs.parameters[k]).abs().max().item() for k, p in start.named_parameters())
    for ours in (head, loss):
        found = largest(theirs, ours)
        assert found["reward"] == 0.0
        assert found["loss"] <= 2e-5 and found["entropy"] <= 1e-4, found
        assert found["grad_norm"] <= 1e-3 and found["clip_ratio/region_mean"] <= 0.02, found
        # Adam's step is the sign of a gradient that rounding decides where it is nearly 0.
        assert found["weights"] <= 0.2 * moved, (found, moved)


@pytest.mark.slow
def test_eight_steps_of_clip_cov(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    args = {"max_steps": STEPS, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    logs = trained(grpo("loss", folder, **args, trainer_options={"loss": "clip_cov"})).logs
    selected = [row["actor/cov_selected"] for row in logs[:-1]]
    assert len(selected) == STEPS and max(selected) > 0
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in logs[:-1])


@pytest.mark.slow
def test_an_evaluation_between_steps_changes_nothing(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    args = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    alone = trained(grpo("loss", folder, **args, trainer_options={"loss": "clip_cov"}))
    more = {"loss": "clip_cov", "eval_dataset": prompts(8)}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2}
    trainer = grpo("loss", folder, **args, **evaluation, trainer_options=more)
    # Its completions are drawn by the same generator as those of training.
    trainer.evaluate = keeps_random_state(trainer.evaluate)
    beside = trained(trainer)
    assert sum("eval_loss" in row for row in beside.logs) == 3
    assert all(torch.equal(p, beside.parameters[k]) for k, p in alone.parameters.items())


def keeps_random_state(call: Any) -> Any:
    def kept(*args: Any, **options: Any) -> Any:
        state = torch.get_rng_state()
        try:
            return call(*args, **options)
        finally:
            torch.set_rng_state(state)

    return kept


def other_trainer(name: str, folder: Path, ours: bool, **options: Any) -> Any:
    import trl
    from datasets import Dataset

    config, kind = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")
    texts = [" ".join(f"w{(i * k) % 60}" for k in range(1, 9)) for i in range(1, 33)]
    answers = [f"w{i % 9} w{i % 7} w3" for i in range(32)]
    data: dict[str, dict[str, Any]] = {
        "SFT": {"text": texts},
        "DPO": {"prompt": texts, "chosen": answers, "rejected": answers[::-1]},
        "KTO": {"prompt": texts, "completion": answers, "label": [i % 3 > 0 for i in range(32)]},
        "RLOO": {"prompt": texts},
    }
    # Rounding grows with what a step moves.
    fixed: dict[str, Any] = {"max_steps": STEPS, "learning_rate": 2e-4}
    more: dict[str, Any] = {}
    if name == "RLOO":
        fixed |= {"num_generations": 4, "max_completion_length": 6}
        more["reward_funcs"] = reward
    args = arguments(config, folder, **{**fixed, **options})
    with quiet(), install() if ours else contextlib.nullcontext():
        return kind(
            model=plain_model(folder), args=args, processing_class=tokenizer(),
            train_dataset=Dataset.from_dict(data[name]), **more,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        pytest.param("SFT", {}, {}, id="SFT"),
        pytest.param("SFT", {"tie_word_embeddings": True}, {}, id="SFT, tied"),
        pytest.param("SFT", {}, {"loss_type": "dft"}, marks=pytest.mark.slow, id="SFT, dft"),
        pytest.param("DPO", {}, {}, marks=pytest.mark.slow, id="DPO"),
        pytest.param("KTO", {}, {}, marks=pytest.mark.slow, id="KTO"),
        pytest.param("RLOO", {}, {"beta": 0.05}, marks=pytest.mark.slow, id="RLOO"),
    ],
)
def test_eight_steps_of_other_trainers(
    name: str, model: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_model(tmp_path, **model)
    theirs, ours = (trained(other_trainer(name, folder, x, **options)) for x in (False, True))
    assert len(theirs.logs) == STEPS + 1
    found = largest(theirs, ours)
    assert found["loss"] <= 1e-4, found
    assert all(off <= 1e-2 for off in found.values()), found
