"""A method whose entropy term is of the likeliest tokens: SIREN's, as its authors have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import logitless as ll  # noqa: E402
from logitless import reference  # noqa: E402
from logitless.rl.demo.head_memory import measure_here  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import LocalEngine  # noqa: E402
from logitless.rl.policy import make_policy  # noqa: E402
from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.rollout import Rollout, hidden_states, sample  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update import batch_options, loss_backward, pack  # noqa: E402
from logitless.rl.update.update import scored  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

TOP_P, EVERYTHING = 0.8, torch.arange(8)
BONUS = ll.PolicyLossSpec(surrogate=ll.Clip(), entropy=ll.EntropyBonus(0.5))
SIREN = replace(ll.presets["siren"], max_length=4, entropy=ll.Siren(0.5, anchor=1.0))


@pytest.fixture
def started(tmp_path: Path) -> tuple[Recipe, LocalEngine, Rollout, Any]:
    """A policy that is not flat, a rollout of it, and advantages."""
    recipe = tiny_recipe(tmp_path)
    policy = make_policy(recipe.model, recipe.seed)
    with torch.no_grad():
        policy.weight.mul_(40.0)
    rollout = sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=4, max_new_tokens=4, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    return recipe, LocalEngine(policy, recipe.update), rollout, torch.linspace(-2, 2, 8)


def plain(engine: LocalEngine, rollout: Rollout) -> tuple[Any, Any]:
    """logp, and the entropy of the likeliest tokens, of full logits; differentiable in weight."""
    states = hidden_states(engine.policy, rollout).detach()
    # ids that the tokenizer does not have have a bias of -inf
    logits = states @ engine.policy.weight.T + engine.policy.head_options["bias"]
    targets = rollout.targets
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in enumerate(reference.likeliest(logits.detach().double().numpy(), TOP_P)):
        kept[row, ids] = True
    some = logits.masked_fill(~kept, -float("inf")).log_softmax(-1)
    entropy = -(some.exp() * some.masked_fill(~kept, 0.0)).sum(-1)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], entropy


def gradient(engine: LocalEngine) -> Any:
    found = engine.policy.weight.grad.clone()
    engine.policy.model.zero_grad()
    return found


@pytest.mark.parametrize("spec", [BONUS, SIREN], ids=["bonus", "siren"])
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_those_of_full_logits(started: Any, spec: Any, parts: int) -> None:
    """Of a batch in micro-batches too, whose square of a mean is that of all tokens."""
    recipe, engine, rollout, advantages = started
    packed = pack(rollout, advantages, EVERYTHING)
    known = scored(engine, packed, spec, recipe, Stopwatch(), TOP_P, moved=False)
    assert set(known) == ({"logp", "entropy", "old_logp"} if spec is SIREN else set())
    shared = batch_options(packed, spec, 0, 0, known)
    logp, entropy = plain(engine, rollout)
    if known:
        torch.testing.assert_close(known["entropy"], entropy.detach(), atol=1e-5, rtol=1e-5)
        assert (known["entropy"] < packed.old_entropy - 1e-3).sum() > 5
    loss = ll.policy_loss(
        logp, packed.old_logp, packed.advantages, packed.mask, spec, entropy=entropy,
        cu_seqlens=packed.cu_seqlens, token_ids=packed.token_ids, **shared,
    ).loss  # fmt: skip
    loss.backward()
    right = gradient(engine)
    total = 0.0
    for part in EVERYTHING.tensor_split(parts):
        own = pack(rollout, advantages, part)
        out = loss_backward(engine, own, spec, recipe, shared, Stopwatch(), TOP_P)
        total += float(out.loss.detach())
    assert total == pytest.approx(float(loss.detach()), abs=1e-5)
    ours = gradient(engine)
    torch.testing.assert_close(ours, right, atol=2e-6, rtol=2e-4)
    # and the term counts: of all tokens it is another
    loss_backward(engine, packed, spec, recipe, shared, Stopwatch())
    assert (gradient(engine) - right).abs().max() > 1e-3 * right.abs().max()


def rows_of(folder: Path, *options: str, **method: Any) -> list[Any]:
    folder.mkdir()
    change = {"entropy": {"coefficient": 5.0}}
    own = {"preset": "siren", "change": change, "controller": {"kind": "anchor"}, **method}
    recipe = tiny_recipe(
        folder, "compare_repeats=0", "entropy_change_every=0", "update.minibatches=1", "steps=2",
        f"methods={json.dumps({'own': own})}", *options,
    )  # fmt: skip
    assert run(recipe, folder / "run") == 0
    return metrics.read(folder / "run" / "own" / metrics.FILE)


def test_a_run_holds_the_entropy_of_the_likeliest(tmp_path: Path) -> None:
    some, everything, one = (
        rows_of(tmp_path / name, entropy_top_p=top_p)
        for name, top_p in (("some", 0.8), ("all", None), ("one", 1.0))
    )
    # the same answers, of which the loss sees other entropies
    assert some[0]["entropy"] == everything[0]["entropy"]
    assert some[0]["actor/entropy"] < some[0]["entropy"] - 1e-3
    assert everything[0]["actor/entropy"] == pytest.approx(everything[0]["entropy"], abs=1e-4)
    assert some[0]["actor/controlled"] < everything[0]["actor/controlled"] - 1e-3
    assert len({row["actor/controlled"] for row in some}) == 1
    assert some[1]["grad_norm"] != everything[1]["grad_norm"]
    # a share of 1 leaves out nothing
    for a, b in zip(one, everything, strict=True):
        assert a["actor/entropy"] == pytest.approx(b["actor/entropy"], abs=1e-5)


def test_nothing_is_written_where_it_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'methods\.own\.entropy_top_p' needs a loss with an"):
        rows_of(tmp_path / "own", preset="grpo", change={}, controller=None, entropy_top_p=0.8)
    assert not (tmp_path / "own" / "run").exists()


def test_memory_of_its_head_is_measured_with_it() -> None:
    assert measure_here(SIREN, None, 0.0, TOP_P, 16, 8, 64) >= 0
