"""Losses, gradients and metrics of GRPO trainers: TRL's own, with our head, and with our loss."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.integrations.trl import install
from tests.plugins.trl.cases import LOSSES, MODELS, SHORT, Case
from tests.plugins.trl.setting import (
    LENGTH,
    Run,
    arguments,
    differences,
    distance,
    generation,
    grpo,
    plain_model,
    prompts,
    quiet,
    reward,
    run,
    save_model,
    tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = LOSSES | MODELS
# Of the largest gradient of each parameter; TRL's own is as far from float64.
GRADIENT = 1e-5
LOSS, METRIC = 2e-6, 1e-5
# VESPO raises a sequence's ratio to a power: of a body in float64 TRL's own loss is off by 1.0e-5,
# and ours by 7.6e-6.
WIDER = {"vespo": 5e-6}


def marked(names: Any) -> list[Any]:
    return [pytest.param(x, marks=() if x in SHORT else pytest.mark.slow) for x in names]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders by what their models are, made once."""
    made: dict[str, Path] = {}

    def folder(options: dict[str, Any]) -> Path:
        key = str(options)
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp("model"), **options)
        return made[key]

    return folder


def outcome(way: str, case: Case, models: Any, **more: Any) -> Run:
    folder = models(case.model)
    trainer = grpo(way, folder, **{**case.args, **more})
    return run(trainer, generation(plain_model(folder), **case.made))


@pytest.mark.parametrize("way", ["head", "loss"])
@pytest.mark.parametrize("name", marked(name for name in CASES if not CASES[name].refused))
def test_a_micro_batch_is_trls(name: str, way: str, models: Any) -> None:
    case = CASES[name]
    theirs, ours = (outcome(x, case, models) for x in ("trl", way))
    assert theirs.metrics.keys() == ours.metrics.keys()
    found = differences(theirs, ours)
    assert found["loss"] <= WIDER.get(name, LOSS), found
    assert found["gradient"] <= GRADIENT, found
    assert found["metrics"] <= METRIC, found
    if name == "all rows masked":
        assert not any(x.any() for x in ours.gradients.values())


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].refused])
def test_what_no_spec_says_is_refused_by_name(name: str, models: Any) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=case.refused):
        grpo("loss", models(case.model), **case.args)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].refused])
def test_the_head_serves_what_the_loss_refuses(name: str, models: Any) -> None:
    theirs, ours = (outcome(x, CASES[name], models) for x in ("trl", "head"))
    assert theirs.metrics.keys() == ours.metrics.keys()
    found = differences(theirs, ours)
    assert found["loss"] <= LOSS, found
    assert found["gradient"] <= GRADIENT and found["metrics"] <= METRIC, found


@pytest.mark.parametrize("way", ["head", "loss"])
@pytest.mark.parametrize(
    "fault", [{"epsilon_high": 0.21}, {"temperature": 1.001}, {"loss_type": "grpo"}]
)
def test_a_fault_is_found(fault: dict[str, Any], way: str, models: Any) -> None:
    """The comparison above sees a loss that is slightly another one."""
    case = CASES["dapo"]
    theirs = outcome("trl", case, models)
    ours = outcome(way, case, models, **fault)
    assert distance(theirs, ours) > 10 * GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("way", ["head", "loss"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_a_micro_batch_of_several(loss_type: str, way: str, models: Any) -> None:
    """Two micro-batches a step of four that are generated: TRL's normalisers take part."""
    args = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "loss_type": loss_type}
    case = Case(args, {"rows": 16, "cut": (9, 6, 0, 4, 7)})
    found = differences(*(outcome(x, case, models) for x in ("trl", way)))
    assert found["loss"] <= LOSS and found["gradient"] <= GRADIENT, found
    assert found["metrics"] <= METRIC, found


@pytest.mark.slow
def test_gmpo(models: Any) -> None:
    """A GRPOTrainer of trl.experimental, with a loss of its own, on this head."""
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    folder = models({})
    made = generation(plain_model(folder))

    def made_in(block: Any) -> Run:
        args = arguments(
            GMPOConfig, folder, num_generations=4, max_completion_length=LENGTH,
            disable_dropout=True,
        )  # fmt: skip
        with quiet(), block():
            trainer = GMPOTrainer(
                model=plain_model(folder), reward_funcs=reward, args=args,
                train_dataset=prompts(), processing_class=tokenizer(),
            )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        return run(trainer, made)

    theirs, ours = made_in(contextlib.nullcontext), made_in(install)
    found = differences(theirs, ours)
    assert found["loss"] <= LOSS and found["gradient"] <= GRADIENT, found
    assert found["metrics"] <= METRIC and theirs.metrics.keys() == ours.metrics.keys()
    assert distance(theirs, outcome("head", CASES["grpo"], models)) > 10 * GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("way", ["head", "loss"])
def test_evaluation(way: str, models: Any) -> None:
    """No gradient, no accumulation."""

    def evaluated(which: str) -> float:
        trainer = grpo(which, models({}), gradient_accumulation_steps=2, loss_type="dapo")
        made = generation(trainer.model)
        trainer.model.eval()
        trainer._generate_and_score_completions = lambda _: made
        with quiet(), torch.no_grad():
            loss = trainer._compute_loss(trainer.model, trainer._prepare_inputs([]))
        assert trainer._metrics["eval"]["entropy"]
        return float(loss)

    assert evaluated(way) == pytest.approx(evaluated("trl"), abs=LOSS)
