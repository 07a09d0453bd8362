"""A body that computes in bfloat16: float32 weights, gradients, log-probs and sums, and curves that
stay near those of float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.rl.answers import task_of
from logitless.rl.demo.job import run, warmed_up
from logitless.rl.engine import LocalEngine
from logitless.rl.policy import Policy, make_policy
from logitless.rl.recipe import Recipe, make_spec
from logitless.rl.rollout import Rollout, hidden_states, sample
from logitless.rl.tracking import metrics
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.progress import Progress
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import batch_options, loss_backward, pack, update_policy
from logitless.rl.update.reference import log_probs
from tests.support.recipes import tiny_recipe

HALF = "model.body_dtype=bfloat16"
# Of log-probs and of a step's mean entropy: bfloat16 has 8 bits.
BOUND = 0.05


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Policy, Rollout]:
    folder = tmp_path_factory.mktemp("started")
    recipe = tiny_recipe(folder)
    policy = make_policy(recipe.model, 0)
    with StopRequest() as stop:
        warmed_up(policy, recipe, task_of(recipe), folder / "w", Progress(1), stop, False)
    return recipe, policy, draw(policy)


def draw(policy: Policy) -> Rollout:
    return sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=16, max_new_tokens=4, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip


def test_the_body_rounds_and_nothing_else_does(started: tuple[Recipe, Policy, Rollout]) -> None:
    recipe, policy, rollout = started
    half = policy.in_dtype("bfloat16")
    with torch.no_grad():
        states, exact = hidden_states(half, rollout), hidden_states(policy, rollout)
    assert states.dtype == torch.float32
    assert 1e-4 < float((states - exact).abs().max()) < BOUND * float(exact.abs().max())

    packed = pack(rollout, torch.linspace(-2, 2, 32), torch.arange(32))
    spec = make_spec("grpo", recipe.methods["grpo"])
    engine = LocalEngine(half, recipe.update)
    policy.model.zero_grad()
    shared = batch_options(packed, spec, 0, 0)
    out = loss_backward(engine, packed, spec, recipe, shared, Stopwatch())
    # the head's product and the softmax are those of float32
    bias = 0.0 if half.padding is None else half.padding.double()
    logits = states.double() @ half.weight.detach().double().T + bias
    expected = logits.log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]
    torch.testing.assert_close(out.logp.double(), expected, atol=1e-5, rtol=0)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained if p.grad is not None}
    assert {p.dtype for p in trained} == {torch.float32}
    policy.model.zero_grad()


def test_log_probs_are_near_those_of_float32(started: tuple[Recipe, Policy, Rollout]) -> None:
    recipe, policy, rollout = started
    half = policy.in_dtype("bfloat16")
    gap = (log_probs(half, rollout, recipe) - log_probs(policy, rollout, recipe)).abs()
    assert 1e-4 < float(gap.max()) < BOUND
    own = draw(half)
    assert float((log_probs(half, own, recipe) - own.logp[own.mask]).abs().max()) < BOUND


def curve(recipe: Recipe, policy: Policy, dtype: str, rollout: Rollout) -> Tensor:
    """[steps, 2]: log-prob and entropy of a rollout's tokens in float32, while the policy learns
    from that rollout in the dtype."""
    start, half = policy.snapshot(), policy.in_dtype(dtype)
    engine, spec = LocalEngine(half, recipe.update), make_spec("grpo", recipe.methods["grpo"])
    advantages = torch.linspace(-2, 2, 32)
    rows = []
    for step in range(12):
        update_policy(engine, rollout, advantages, spec, recipe, step, Stopwatch())
        with torch.no_grad():
            stats = ll.linear_token_stats(
                hidden_states(policy, rollout), policy.weight, rollout.targets,
                **policy.head_options,
            )  # fmt: skip
        rows.append(torch.stack([stats.logp.mean(), stats.entropy.mean()]))
    policy.restore(start)
    return torch.stack(rows)


def test_curves_of_one_rollout_stay_near(started: tuple[Recipe, Policy, Rollout]) -> None:
    recipe, policy, rollout = started
    # Large enough that the curves go somewhere; at twice the rates weights that start 1e-3 off, as
    # bfloat16 rounds them, end 0.15 and 0.4 away in float32 too.
    update = replace(recipe.update, body_lr=0.001, head_lr=0.01)
    recipe = replace(recipe, update=update)
    exact, half = (curve(recipe, policy, dtype, rollout) for dtype in ("float32", "bfloat16"))
    assert not torch.equal(exact, half)
    moved = (exact - exact[0]).abs().amax(dim=0)
    off = (exact - half).abs().amax(dim=0)
    assert bool((moved > 0.05).all()) and bool((off < BOUND).all())


def test_a_run_in_bfloat16_and_its_resumption(tmp_path: Path) -> None:
    found = {}
    for name, options in {"exact": (), "half": (HALF,)}.items():
        recipe = tiny_recipe(tmp_path, "compare_repeats=0", *options)
        assert run(recipe, tmp_path / name) == 0
        found[name] = metrics.read(tmp_path / name / "grpo" / "metrics.jsonl")
    assert run(tiny_recipe(tmp_path, "compare_repeats=0", "steps=2", HALF), tmp_path / "two") == 0
    whole = tiny_recipe(tmp_path, "compare_repeats=0", HALF)
    assert run(whole, tmp_path / "two", resume=True) == 0
    again = metrics.read(tmp_path / "two" / "grpo" / "metrics.jsonl")
    for key in ("reward", "entropy", "grad_norm", "actor/pg_loss", "logp_gap"):
        assert metrics.column(again, key) == metrics.column(found["half"], key)
    assert max(row["logp_gap"] for row in found["half"]) < BOUND
    entropy = [torch.tensor(metrics.column(found[name], "entropy")) for name in ("exact", "half")]
    assert 0 < float((entropy[0] - entropy[1]).abs().max()) < BOUND


def test_weights_are_cast_anew_by_every_rollout(started: tuple[Recipe, Policy, Rollout]) -> None:
    """Within one they are cast once."""
    _, policy, _ = started
    half, start = policy.in_dtype("bfloat16"), policy.snapshot()
    first = draw(half)
    assert torch.equal(draw(half).logp, first.logp)
    with torch.no_grad():
        policy.body.layers[0].mlp.down_proj.weight.mul_(3)
    changed = draw(half)
    policy.restore(start)
    assert changed.ids.shape != first.ids.shape or not torch.equal(changed.logp, first.logp)
    assert torch.equal(draw(half).logp, first.logp)


@pytest.mark.parametrize("preset", ["gspo", "luspo"])
def test_a_clip_finer_than_the_rounding_is_refused(preset: str, tmp_path: Path) -> None:
    methods = f"methods={{fine: {{preset: {preset}}}}}"
    with pytest.raises(ValueError, match=r"'model\.body_dtype' must be float32 with methods\.fine"):
        run(tiny_recipe(tmp_path, HALF, methods), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    message = "'model.body_dtype' must be one of 'float32', 'bfloat16', got 'float16'"
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, "model.body_dtype=float16")
