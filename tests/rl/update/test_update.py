"""An update of the policy by a rollout: gradients, presets, metrics and entropy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import logitless as ll
from logitless.rl.demo.head_memory import measure_here
from logitless.rl.demo.job import run, warmed_up
from logitless.rl.demo.prepare import with_solutions
from logitless.rl.engine import LocalEngine, make_optimizer
from logitless.rl.policy import Policy, make_policy
from logitless.rl.recipe import LossRecipe, Recipe, make_spec
from logitless.rl.rollout import sample
from logitless.rl.tasks import load_task
from logitless.rl.tracking import metrics
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.progress import Progress
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import (
    EntropyProbe,
    Update,
    batch_options,
    loss_backward,
    merge,
    pack,
    update_policy,
)
from logitless.rl.update.update import scored
from tests.support.recipes import tiny_recipe


@pytest.fixture
def started(tmp_path: Path) -> tuple[Recipe, Any, Any, torch.Tensor]:
    """A warmed-up tiny policy, a rollout of it, and unequal advantages: every token counts."""
    recipe = tiny_recipe(tmp_path)
    task = load_task(recipe.task.name, recipe.task.options)
    policy = make_policy(recipe.model, recipe.seed)
    with StopRequest() as stop:
        warmed_up(policy, recipe, task, tmp_path / "warmup", Progress(1), stop, False)
    rollout = sample(
        policy,
        policy.encode(["sum 8:", "sum 10:"]),
        group=8,
        max_new_tokens=4,
        temperature=1.0,
        seed=0,
        step=0,
        clock=Stopwatch(),
    )
    return recipe, policy, rollout, torch.linspace(-2, 2, 16)


def head_gradient(
    started: Any, name: str, *, parts: int = 1, tail_mass: float = 0.0
) -> torch.Tensor:
    """d_weight of one minibatch, in so many micro-batches."""
    recipe, policy, rollout, advantages = started
    recipe = replace(recipe, update=replace(recipe.update, tail_mass=tail_mass))
    spec = make_spec(name, recipe.methods[name])
    engine = LocalEngine(policy, recipe.update)
    policy.model.zero_grad()
    everything = torch.arange(16)
    shared = batch_options(pack(rollout, advantages, everything), spec, 0, 0)
    for part in everything.tensor_split(parts):
        packed = pack(rollout, advantages, part)
        loss_backward(engine, packed, spec, recipe, shared, Stopwatch())
    return policy.weight.grad.clone()


def test_truncated_rollouts_are_trained_on_what_was_drawn_from(tmp_path: Path) -> None:
    """On-policy, the log-probs of training are those of the rollout: its ratio is 1."""
    recipe = tiny_recipe(
        tmp_path, "steps=2", "rollout.top_p=0.7", "rollout.min_p=0.01", "update.minibatches=1",
        "methods={grpo: {preset: grpo}, erc: {preset: erc}}",
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 0
    for name in ("grpo", "erc"):
        rows = metrics.read(tmp_path / "run" / name / "metrics.jsonl")
        assert max(row["logp_gap"] for row in rows) < 1e-4
        # erc keeps the tokens whose entropy is that of the rollout: here all of them
        assert min(row["grad_norm"] for row in rows) > 0
        assert all(row["actor/entropy"] == pytest.approx(row["entropy"], abs=1e-4) for row in rows)


@pytest.mark.parametrize("name", ["grpo", "clip_cov"])
def test_micro_batches_add_up(started: Any, name: str) -> None:
    gradients = [head_gradient(started, name, parts=parts) for parts in (1, 3)]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_predicted_entropy_change_is_first_order(started: Any) -> None:
    recipe, policy, rollout, _ = started
    engine = LocalEngine(policy, recipe.update)
    generator = torch.Generator().manual_seed(0)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    errors = []
    for size in (1e-2, 1e-3):
        policy.model.load_state_dict(before)
        probe = EntropyProbe(engine, rollout, 1.0, engine.cut())
        generator.manual_seed(0)
        with torch.no_grad():
            policy.weight.add_(size * torch.randn(policy.weight.shape, generator=generator))
        change = probe.change()
        assert abs(change.predicted) > 1e-5
        errors.append(abs(change.predicted - change.measured))
    # A second-order error: a hundredth for a tenth of the step; fp32 blurs the small one.
    assert errors[1] < errors[0] / 20


def test_frozen_parts_stay(started: Any) -> None:
    recipe, policy, _, _ = started
    optimizer = make_optimizer(policy, recipe.update)
    assert not policy.embedding.requires_grad
    assert [group["lr"] for group in optimizer.param_groups] == [3e-5, 0.003]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [p for p in policy.model.parameters() if p.requires_grad]
    )


def test_a_head_with_rows_that_make_no_logit_trains(started: Any) -> None:
    """Its weight is a part of the model's parameter, and no leaf."""
    recipe, policy, rollout, advantages = started
    cut = policy.head._replace(weight=policy.weight[:320], vocab=320)
    policy = Policy(policy.model, policy.tokenizer, cut)
    engine = LocalEngine(policy, recipe.update)
    before = policy.head_parameter.detach().clone()
    spec = make_spec("grpo", recipe.methods["grpo"])
    for step in range(2):
        update_policy(engine, rollout, advantages, spec, recipe, step, Stopwatch())
    changed = (policy.head_parameter != before).any(dim=1)
    assert changed[:320].any() and not changed[320:].any()


@pytest.mark.parametrize("name", sorted(ll.presets))
def test_every_preset_trains(started: Any, name: str) -> None:
    """A step of any of them with no more in the recipe than its name."""
    recipe, policy, rollout, advantages = started
    spec = make_spec(name, LossRecipe(name), recipe.rollout.max_new_tokens)
    engine, before = LocalEngine(policy, recipe.update), policy.weight.detach().clone()
    update = update_policy(engine, rollout, advantages, spec, recipe, 0, Stopwatch())
    assert update.logp_gap < 1e-4
    assert all(math.isfinite(value) for value in update.metrics.values())
    assert not torch.equal(policy.weight, before)


def test_selected_tokens_are_known_by_their_places(started: Any) -> None:
    recipe, policy, rollout, advantages = started

    def updated(name: str, minibatches: int, **control: Any) -> Update:
        now = replace(recipe, update=replace(recipe.update, minibatches=minibatches))
        spec = make_spec(name, LossRecipe(name, {"control": control} if control else {}))
        engine = LocalEngine(policy, now.update)
        return update_policy(engine, rollout, advantages, spec, now, 0, Stopwatch())

    # all tokens are of one batch: those of the highest entropy
    found = updated("top_entropy", 1, fraction=0.2)
    least = rollout.entropy[found.selected].min()
    assert 0 < found.selected.sum() == found.selected_tokens
    assert not found.selected[~rollout.mask].any()
    assert (rollout.entropy[rollout.mask & ~found.selected] <= least).all()
    # a token is in one of the minibatches
    found = updated("clip_cov", 4, fraction=0.2, low=0.0, high=50.0)
    assert 0 < found.selected.sum() == found.selected_tokens
    assert not found.selected[~rollout.mask].any()
    assert not updated("grpo", 2).selected.any()


@pytest.mark.parametrize("name", sorted(ll.presets))
def test_the_memory_of_every_preset_is_measured(name: str) -> None:
    for change in ({}, {"kl": {"coefficient": 0.01}}):
        spec = make_spec(name, LossRecipe(name, change), max_new_tokens=4)
        assert measure_here(spec, None, 0.0, None, 16, 8, 64) >= 0


def test_specs_come_from_presets_with_changes() -> None:
    spec = make_spec("mine", LossRecipe("clip_cov", {"control": {"fraction": 0.25}}))
    assert spec.control.fraction == 0.25
    assert spec.surrogate == ll.presets["clip_cov"].surrogate
    with pytest.raises(ValueError, match=r"preset 'grop' is unknown; did you mean 'grpo'\?"):
        make_spec("mine", LossRecipe("grop"))
    with pytest.raises(ValueError, match=r"did you mean 'methods.mine.change.control.fraction'\?"):
        make_spec("mine", LossRecipe("clip_cov", {"control": {"fracton": 0.25}}))
    # {fraction} alone could be any control's; {coefficient} of an absent entropy bonus is plain.
    with pytest.raises(ValueError, match=r"'methods.mine.change.control' is None"):
        make_spec("mine", LossRecipe("grpo", {"control": {"fraction": 0.25}}))
    bonus = make_spec("mine", LossRecipe("grpo", {"entropy": {"coefficient": 0.01}})).entropy
    assert bonus == ll.EntropyBonus(0.01)
    held = make_spec("mine", LossRecipe("grpo", {"entropy": {"quantile": 0.5}})).entropy
    assert held == ll.Siren(quantile=0.5)
    spec = make_spec("mine", LossRecipe("grpo", {"kl": {"coefficient": 0.01}}))
    assert spec.kl.coefficient == 0.01
    assert "ref_logp" in spec.needs


def test_warm_up_needs_solutions() -> None:
    class Mute:
        def prompts(self, rng: Any, n: int) -> list[Any]:
            return []

        def reward(self, prompt: Any, completion: str) -> float:
            return 0.0

    with pytest.raises(ValueError, match=r"set warmup\.steps=0"):
        with_solutions(Mute())


def test_tail_mass_of_a_recipe_serves_rows_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    recipe = tiny_recipe(tmp_path, "steps=1", "update.tail_mass=1e-2", "update.micro_batches=2")
    assert run(recipe, out) == 0
    (row,) = metrics.read(out / "grpo" / "metrics.jsonl")
    assert 0 < row["actor/support_rows"] <= 1
    assert 0 < row["actor/support_bound_max"] <= row["actor/support_bound_sum"]
    details = json.loads((out / "run.json").read_text("utf-8"))
    assert details["comparison"]["seconds_exact"] > 0
    assert details["comparison"]["loss_difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "logitless, tail_mass=0.01 " in printed
    assert f"tail_mass=0.01: {details['support_rows']:.1%} of the rows" in printed


@pytest.mark.parametrize("name", ["grpo", "clip_cov"])
def test_tail_mass_changes_gradients_by_little(started: Any, name: str) -> None:
    exact, served = (head_gradient(started, name, tail_mass=mass) for mass in (0.0, 1e-3))
    assert not torch.equal(exact, served)
    assert (exact - served).norm() < 1e-2 * exact.norm()


def test_metrics_of_micro_batches_merge_by_what_they_are() -> None:
    parts = [
        {"actor/pg_loss": 0.25, "actor/support_bound_max": 3.0, "actor/support_rows": 1.0},
        {"actor/pg_loss": 0.5, "actor/support_bound_max": 2.0, "actor/support_rows": 0.5},
    ]
    assert merge(parts) == {
        "actor/pg_loss": 0.75, "actor/support_bound_max": 3.0, "actor/support_rows": 0.75,
    }  # fmt: skip


def test_a_batch_knows_how_far_the_policy_has_moved(started: Any) -> None:
    """A clip that the batch chooses is told of the weights of now, from the second update on."""
    recipe, policy, rollout, advantages = started
    engine = LocalEngine(policy, recipe.update)
    packed = pack(rollout, advantages, torch.arange(len(rollout.mask)))
    spec = ll.PolicyLossSpec(surrogate=ll.M2po(1e-6, 0.0, 0.0))
    known: dict[str, Any] = {"recipe": recipe, "clock": Stopwatch()}
    assert scored(engine, packed, spec, **known, moved=False) == {}
    assert scored(engine, packed, ll.presets["grpo"], **known, moved=True) == {}
    own = make_spec("m2po", LossRecipe("m2po"))
    update_policy(engine, rollout, advantages, own, recipe, 0, Stopwatch())
    found = scored(engine, packed, spec, **known, moved=True)
    moved = (found["logp"] - packed.old_logp).abs()
    assert moved.max() > 1e-3
    spec = ll.PolicyLossSpec(surrogate=ll.M2po(float(moved.square().mean()) / 4, 0.0, 0.0))
    low, high = batch_options(packed, spec, 0, 0, found)["batch"].log_bounds
    assert 0.0 < high == -low < float(moved.max())
