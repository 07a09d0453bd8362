"""Layers that run again in the backward: the same gradients from less that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logitless.rl.demo.job import run
from logitless.rl.engine import LocalEngine
from logitless.rl.engine.layers import checkpoint_layers
from logitless.rl.policy import Policy, make_policy
from logitless.rl.recipe import make_spec
from logitless.rl.rollout import hidden_states, sample
from logitless.rl.tracking import metrics
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import batch_options, loss_backward, pack
from tests.support.recipes import tiny_recipe


def gradients(folder: Path, again: bool, engines: int = 1) -> dict[str, Tensor]:
    """Of a minibatch of a rollout, by parameter; the model has dropout, which nothing may see."""
    options = (f"update.gradient_checkpointing={str(again).lower()}", "model.layers=3")
    recipe = tiny_recipe(folder, *options)
    policy = make_policy(recipe.model, seed=0)
    for module in policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    for _ in range(engines):
        engine = LocalEngine(policy, recipe.update)
    layers = policy.model.model.layers
    assert [hasattr(layer.forward, "runs_again") for layer in layers] == [again] * 3
    rollout = sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=4, max_new_tokens=4, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    packed = pack(rollout, torch.linspace(-2, 2, 8), torch.arange(8))
    spec = make_spec("grpo", recipe.methods["grpo"])
    shared = batch_options(packed, spec, 0, 0)
    out = loss_backward(engine, packed, spec, recipe, shared, Stopwatch())
    assert (out.logp - packed.old_logp).abs().max() < 1e-4
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    return {name: p.grad.clone() for name, p in trained.items()}


def test_gradients_are_equal(tmp_path: Path) -> None:
    kept = gradients(tmp_path, again=False)
    assert len(kept) > 20 and all(g.any() for g in kept.values())
    for engines in (1, 2):
        again = gradients(tmp_path, again=True, engines=engines)
        assert again.keys() == kept.keys()
        assert all(torch.equal(again[name], kept[name]) for name in kept)


def kept_bytes(policy: Policy, rollout: Any) -> int:
    """Of tensors that the body's graph holds, parameters apart."""
    held: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def pack_tensor(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        hidden_states(policy, rollout)
    return sum(held.values())


def test_less_is_kept(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "model.layers=4")
    policy = make_policy(recipe.model, seed=0)
    rollout = sample(
        policy, policy.encode(["sum 8:"]), group=8, max_new_tokens=8, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    before = kept_bytes(policy, rollout)
    checkpoint_layers(policy.model)
    assert kept_bytes(policy, rollout) < before / 3


def test_a_run_is_the_same(tmp_path: Path) -> None:
    rows = []
    for again in ("true", "false"):
        recipe = tiny_recipe(
            tmp_path, "steps=2", "compare_repeats=0", f"update.gradient_checkpointing={again}"
        )
        assert run(recipe, tmp_path / again) == 0
        rows.append(metrics.read(tmp_path / again / "clip_cov" / "metrics.jsonl"))
    for key in ("reward", "entropy", "grad_norm", "actor/pg_loss", "logp_gap"):
        assert metrics.column(rows[0], key) == metrics.column(rows[1], key)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'update\.gradient_checkpointing' must be false for Lin"):
        checkpoint_layers(nn.Linear(2, 2))
