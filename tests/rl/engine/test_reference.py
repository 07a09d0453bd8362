"""A KL term compares with the policy that the recipe names, and a resumed run with the same one."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.rl.demo.job import run
from logitless.rl.engine import LocalEngine
from logitless.rl.policy import Policy, as_policy, make_policy
from logitless.rl.recipe import LossRecipe, Recipe, ReferenceRecipe, make_spec
from logitless.rl.rollout import Rollout, hidden_states, sample
from logitless.rl.tracking import checkpoint, metrics
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import batch_options, loss_backward, pack, update_policy, with_reference
from tests.support.recipes import tiny_recipe

KL = {"kl": {"coefficient": 0.3, "estimator": "k3"}}
KINDS = {
    "frozen": ReferenceRecipe(),
    "ema": ReferenceRecipe("ema", decay=0.75),
    "anchor": ReferenceRecipe("anchor", every=2),
}


class Started:
    """An untrained tiny policy, a rollout of it, and an engine that has a reference."""

    def __init__(self, folder: Path, kind: str = "frozen", *overrides: str) -> None:
        # large enough that a few steps show
        self.recipe: Recipe = tiny_recipe(folder, "update.body_lr=0.01", *overrides)
        self.policy: Policy = make_policy(self.recipe.model, seed=0)
        self.engine = LocalEngine(self.policy, self.recipe.update, reference=KINDS[kind])
        self.rollout = self.draw()
        self.advantages = torch.linspace(-2, 2, 8)

    def draw(self) -> Rollout:
        return sample(
            self.policy, self.policy.encode(["sum 8:", "sum 10:"]), group=4, max_new_tokens=4,
            temperature=1.0, seed=0, step=0, clock=Stopwatch(), **self.recipe.rollout.truncation,
        )  # fmt: skip

    def train(self, change: dict[str, Any] | None = None) -> dict[str, float]:
        """An RL step on the same rollout."""
        spec = make_spec("mine", LossRecipe("grpo", KL if change is None else change))
        rollout = with_reference(self.engine, self.rollout, self.recipe, Stopwatch())
        found = update_policy(
            self.engine, rollout, self.advantages, spec, self.recipe, 0, Stopwatch()
        )
        self.engine.advance()
        return found.metrics

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.policy.model.named_parameters()}

    def reference_weights(self) -> dict[str, Tensor]:
        assert self.engine.reference is not None
        with self.engine.reference.in_place():
            return self.weights()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("truncation", [(), ("rollout.top_p=0.9",)])
def test_log_probs_are_those_of_the_policy_of_the_start(
    tmp_path: Path, truncation: tuple[str, ...]
) -> None:
    started = Started(tmp_path, "frozen", *truncation)
    untouched = as_policy(copy.deepcopy(started.policy.model), started.policy.tokenizer)
    first = with_reference(started.engine, started.rollout, started.recipe, Stopwatch()).ref_logp
    # at first it is the policy
    torch.testing.assert_close(first, started.rollout.logp, atol=2e-6, rtol=0)
    for _ in range(3):
        started.train()
    trained = started.weights()
    rollout = with_reference(started.engine, started.rollout, started.recipe, Stopwatch())
    assert rollout.ref_logp is not None
    assert same(trained, started.weights())
    expected, now = (
        ll.linear_token_stats(
            hidden_states(policy, rollout), policy.weight, rollout.targets,
            sampling_mask=rollout.kept, **policy.head_options,
        ).logp
        for policy in (untouched, started.policy)
    )  # fmt: skip
    torch.testing.assert_close(rollout.ref_logp[rollout.mask], expected, atol=2e-6, rtol=0)
    assert not rollout.ref_logp[~rollout.mask].any()
    assert (now - expected).abs().max() > 1e-2


def test_an_error_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    started = Started(tmp_path)
    started.train()
    before = started.weights()
    assert started.engine.reference is not None
    with suppress(KeyError), started.engine.reference.in_place():
        assert not same(before, started.weights())
        raise KeyError
    assert same(before, started.weights())


def test_the_term_is_that_of_plain_torch(tmp_path: Path) -> None:
    """Value and gradient of coefficient * mean(exp(-x) - 1 + x), x = logp - ref_logp."""
    started = Started(tmp_path)
    started.train()
    rollout = with_reference(started.engine, started.rollout, started.recipe, Stopwatch())
    everything = torch.arange(8)
    packed = pack(rollout, torch.zeros(8), everything)
    spec = make_spec("mine", LossRecipe("ppo", KL))
    shared = batch_options(packed, spec, 0, 0)
    policy = started.policy
    policy.model.zero_grad()
    out = loss_backward(started.engine, packed, spec, started.recipe, shared, Stopwatch())
    found = policy.weight.grad.clone()
    policy.model.zero_grad()
    logits = hidden_states(policy, rollout) @ policy.weight.T + policy.head_options.get("bias", 0)
    logp = logits.log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]
    assert packed.ref_logp is not None
    x = logp - packed.ref_logp
    kl = (torch.exp(-x) - 1 + x).mean()
    (0.3 * kl).backward()
    assert float(kl.detach()) > 1e-3
    assert float(out.metrics["actor/kl_loss"]) == pytest.approx(float(kl.detach()), rel=1e-4)
    torch.testing.assert_close(found, policy.weight.grad, atol=1e-6, rtol=1e-4)


def test_a_frozen_one_stays(tmp_path: Path) -> None:
    started = Started(tmp_path)
    first = started.weights()
    for _ in range(3):
        started.train()
    assert same(first, started.reference_weights()) and not same(first, started.weights())


def test_an_ema_moves_by_its_decay(tmp_path: Path) -> None:
    started = Started(tmp_path, "ema")
    expected = started.weights()
    for _ in range(3):
        started.train()
        now = started.weights()
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now}
        torch.testing.assert_close(started.reference_weights(), expected, atol=1e-6, rtol=1e-5)


def test_an_anchor_is_dropped_every_so_many_steps(tmp_path: Path) -> None:
    started = Started(tmp_path, "anchor")
    seen = [started.weights()]
    for _ in range(4):
        started.train()
        seen.append(started.weights())
        done = len(seen) - 1
        assert same(started.reference_weights(), seen[done - done % 2])


OPTIONS = (
    "compare_repeats=0", "entropy_change_every=0",
    "methods={grpo: {preset: grpo, change: {kl: {coefficient: 0.3}}}}",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_compares_with_the_same_policy(tmp_path: Path, kind: str) -> None:
    more = {"frozen": (), "ema": ("reference.decay=0.75",), "anchor": ("reference.every=2",)}
    options = (*OPTIONS, f"reference.kind={kind}", *more[kind])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(tiny_recipe(tmp_path, *options, "steps=5"), whole) == 0
    assert run(tiny_recipe(tmp_path, *options, "steps=3"), parts) == 0
    assert run(tiny_recipe(tmp_path, *options, "steps=5"), parts, resume=True) == 0
    once, twice = (
        metrics.column(metrics.read(out / "grpo" / "metrics.jsonl"), "actor/kl_loss")
        for out in (whole, parts)
    )
    assert once == twice and min(once[1:]) > 1e-6
    first, second = (checkpoint.latest(out / "grpo") for out in (whole, parts))
    assert first is not None and second is not None
    names = sorted(path.name for path in first.glob("*.safetensors"))
    assert ("reference.safetensors" in names) == (kind != "frozen")
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("name", sorted(ll.presets))
def test_every_preset_trains_with_a_reference(tmp_path: Path, name: str) -> None:
    started = Started(tmp_path)
    change = {"kl": {"coefficient": 0.1}}
    spec = make_spec(name, LossRecipe(name, change), started.recipe.rollout.max_new_tokens)
    rollout = with_reference(started.engine, started.rollout, started.recipe, Stopwatch())
    update = update_policy(
        started.engine, rollout, started.advantages, spec, started.recipe, 0, Stopwatch()
    )
    assert "actor/kl_loss" in update.metrics
    assert all(math.isfinite(value) for value in update.metrics.values())


def test_kl_cov_compares_with_the_reference(tmp_path: Path) -> None:
    """Right after a rollout the policy is the old one, and not that of the start."""
    gradients = {}
    for against in ("old", "ref"):
        started = Started(tmp_path)
        started.train({})
        started.rollout = started.draw()
        change = {"control": {"against": against, "fraction": 0.5, "coefficient": 5.0}}
        spec = make_spec("mine", LossRecipe("kl_cov", change))
        assert ("ref_logp" in spec.needs) == (against == "ref")
        rollout = with_reference(started.engine, started.rollout, started.recipe, Stopwatch())
        packed = pack(rollout, started.advantages, torch.arange(8))
        shared = batch_options(packed, spec, 0, 0)
        started.policy.model.zero_grad()
        loss_backward(started.engine, packed, spec, started.recipe, shared, Stopwatch())
        gradients[against] = started.policy.weight.grad.clone()
    assert gradients["old"].isfinite().all() and gradients["ref"].isfinite().all()
    assert not torch.equal(gradients["old"], gradients["ref"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference.kind=old", "'reference.kind' must be one of 'frozen', 'ema', 'anchor'"),
        ("reference.kind=ema", "'reference.decay' goes with reference.kind=ema, got .*=None"),
        ("reference.every=3", "'reference.every' goes with reference.kind=anchor, got .*=3 and"),
        ("reference={kind: ema, decay: 1}", r"'reference.decay' must be in \[0, 1\), got 1"),
        ("reference={kind: anchor, every: 0}", "'reference.every' must be at least 1, got 0"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, override)


def test_a_reference_that_no_method_uses_is_an_error(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "reference={kind: anchor, every: 2}")
    with pytest.raises(ValueError, match=r"'reference\.kind' is anchor, and no method compares"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
