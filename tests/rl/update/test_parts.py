"""What goes through the body at once: parts of a rollout, alike, and no column of padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.rl.demo import job  # noqa: E402
from logitless.rl.engine import LocalEngine  # noqa: E402
from logitless.rl.policy import Policy, make_policy  # noqa: E402
from logitless.rl.recipe import LossRecipe, load_recipe, make_spec  # noqa: E402
from logitless.rl.rollout import Cut, Rollout, hidden_states, in_parts, of_parts, sample  # noqa: E402
from logitless.rl.rollout.parts import alike  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update import EntropyProbe, update_policy  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_alike  # noqa: E402


@pytest.fixture
def started(tmp_path: Path) -> tuple[LocalEngine, Rollout]:
    recipe = tiny_recipe(tmp_path)
    policy = make_policy(recipe.model, recipe.seed)
    with torch.no_grad():
        policy.weight.mul_(20.0)
    rollout = sample(
        policy, policy.encode(["sum 8:", "sum 10, and a longer prompt:"]), group=4,
        max_new_tokens=6, temperature=1.0, seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    return LocalEngine(policy, recipe.update), rollout


def shortened(rollout: Rollout, lengths: list[int]) -> Rollout:
    """The same answers, of which each has this many tokens."""
    mask = torch.arange(rollout.mask.shape[1]) < torch.tensor(lengths)[:, None]
    prompts = rollout.attention[:, : rollout.prompt_length]
    return replace(rollout, mask=mask, attention=torch.cat([prompts, mask], dim=1))


def test_columns_of_padding_reach_no_body(
    started: tuple[LocalEngine, Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rollout = started
    rollout = shortened(rollout, [3, 1, 2, 3, 6, 4, 5, 6])
    every = hidden_states(engine.policy, rollout)
    seen, states = [], Policy.states

    def watched(policy: Policy, ids: Any, attention: Any) -> Any:
        seen.append((ids.shape[1], attention))
        return states(policy, ids, attention)

    monkeypatch.setattr(Policy, "states", watched)
    # the shorter prompt, and at most 3 of 6 tokens
    some = hidden_states(engine.policy, rollout.sequences(torch.arange(4)))
    torch.testing.assert_close(some, every[:9], rtol=1e-5, atol=1e-6)
    ((columns, attention),) = seen
    assert columns == len("sum 8:") + 3 < rollout.ids.shape[1]
    assert attention.any(dim=0).all()


# 20: more than there are sequences; 30: of tokens a sequence or two, but for those that are longer
CUTS = [Cut(3), Cut(20), Cut(tokens=30)]


@pytest.mark.parametrize("cut", CUTS)
def test_a_probe_in_parts_is_the_same(started: tuple[LocalEngine, Rollout], cut: Cut) -> None:
    engine, rollout = started
    before = engine.policy.weight.detach().clone()
    changes = []
    for parts in (Cut(), cut):
        with torch.no_grad():
            engine.policy.weight.copy_(before)
        probe = EntropyProbe(engine, rollout, 1.0, parts)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            engine.policy.weight.add_(1e-2 * torch.randn(before.shape, generator=generator))
        changes.append(probe.change())
    assert abs(changes[0].predicted) > 1e-5
    assert changes[1].predicted == pytest.approx(changes[0].predicted, rel=1e-4)
    assert changes[1].measured == pytest.approx(changes[0].measured, rel=1e-4, abs=1e-7)


def test_neighbours_are_as_long_as_each_other_or_have_one_prompt(
    started: tuple[LocalEngine, Rollout],
) -> None:
    engine, rollout = started
    rollout = shortened(rollout, [3, 1, 2, 3, 6, 4, 5, 6])
    index = torch.tensor([7, 1, 4, 0, 2])
    assert alike(engine.policy, rollout, index).tolist() == [1, 2, 0, 7, 4]
    shared = replace(engine.policy, share_prompts=True)
    assert alike(shared, rollout, index).tolist() == [0, 1, 2, 4, 7]
    # a row of 6 + 2 + 0 + 1 + 2 tokens is shorter than one of 28 + 5, and longer than one of 6 + 2
    doubled = replace(rollout, ids=rollout.ids.roll(4, 0), attention=rollout.attention.roll(4, 0))
    doubled = replace(doubled, mask=rollout.mask.roll(4, 0))
    assert alike(shared, doubled, torch.tensor([0, 5, 6, 7])).tolist() == [5, 6, 7, 0]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("tokens", [1, 30, 45, 80, 10_000])
def test_a_part_brings_the_body_so_many_tokens_at_most(
    started: tuple[LocalEngine, Rollout], share: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one more sequence would bring more."""
    engine, rollout = started
    rollout = shortened(rollout, [3, 1, 2, 3, 6, 4, 5, 6])
    policy = replace(engine.policy, share_prompts=share)
    brought: list[int] = []
    states = Policy._states

    def watched(policy: Policy, ids: Any, *given: Any) -> Any:
        brought.append(ids.numel())
        return states(policy, ids, *given)

    monkeypatch.setattr(Policy, "_states", watched)

    def brings(index: Any) -> int:
        hidden_states(policy, rollout.sequences(index))
        return brought[-1]

    parts = in_parts(policy, rollout, torch.arange(8), Cut(tokens=tokens))
    assert torch.equal(torch.cat(parts), alike(policy, rollout, torch.arange(8)))
    assert all(brings(part) <= tokens or len(part) == 1 for part in parts)
    for part, after in itertools.pairwise(parts):
        assert brings(torch.cat([part, after[:1]])) > tokens
    assert (len(parts) == 8) == (tokens == 1) and (len(parts) == 1) == (tokens == 10_000)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_numbers_of_parts_are_in_the_order_of_the_tokens(
    started: tuple[LocalEngine, Rollout], cut: Cut, share: bool
) -> None:
    engine, rollout = started
    rollout = shortened(rollout, [3, 1, 2, 3, 6, 4, 5, 6])
    policy = replace(engine.policy, share_prompts=share)
    found = of_parts(policy, rollout, cut, lambda part: {"x": part.targets, "y": -part.targets})
    assert torch.equal(found["x"], rollout.targets)
    assert torch.equal(found["y"], -rollout.targets)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["clip_cov", "siren"])
def test_cut_by_tokens_a_minibatch_has_its_loss_its_gradient_and_its_selected_tokens(
    started: tuple[LocalEngine, Rollout], tmp_path: Path, name: str, share: bool
) -> None:
    """siren squares a mean over the whole minibatch."""
    engine, rollout = started
    rollout = shortened(rollout, [3, 1, 2, 3, 6, 4, 5, 6])
    policy = replace(engine.policy, share_prompts=share)
    control = {"fraction": 0.2, "low": 0.0, "high": 50.0}
    change = {"control": control} if name == "clip_cov" else {}
    found = []
    for tokens in (0, 30):
        recipe = tiny_recipe(tmp_path, f"update.micro_tokens={tokens}", "update.minibatches=1")
        recipe = replace(recipe, update=replace(recipe.update, body_lr=1e-3, embedding_lr=1e-3))
        engine = LocalEngine(policy, recipe.update)
        gradients: list[Any] = []

        def kept(engine: LocalEngine = engine, gradients: list[Any] = gradients) -> float:
            gradients += engine.take_gradients()
            return 1.0

        engine.step = kept  # type: ignore[method-assign]
        spec = make_spec(name, LossRecipe(name, change), rollout.mask.shape[1])
        advantages = torch.linspace(-2, 2, 8)
        update = update_policy(engine, rollout, advantages, spec, recipe, 0, Stopwatch())
        found.append((update, gradients))
    (whole, exact), (cut, summed) = found
    assert torch.equal(cut.selected, whole.selected)
    assert cut.selected_tokens == whole.selected_tokens == (6 if name == "clip_cov" else 0)
    assert cut.metrics.keys() == whole.metrics.keys()
    for key, value in whole.metrics.items():
        assert cut.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert max(float(g.abs().max()) for g in exact) > 1e-3
    for one, other in zip(summed, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_run_cut_by_tokens_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    """With a reference, an entropy probe, and a control that scores the minibatch."""
    methods = (
        "methods={clip_v: {preset: clip_v, change: {kl: {coefficient: 0.1}}}, "
        "siren: {preset: siren, entropy_top_p: 0.8, controller: {kind: anchor}}}"
    )
    options = ("compare_repeats=0", "entropy_change_every=1", methods, "steps=2")
    for name, more in {"whole": (), "cut": ("update.micro_tokens=25",)}.items():
        assert job.run(tiny_recipe(tmp_path, *options, *more), tmp_path / name) == 0
    assert_alike(tmp_path / "cut", tmp_path / "whole", ["clip_v", "siren"], steps=2)


def test_the_start_is_kept_for_the_methods_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the start, and none while the last method trains."""
    kept: dict[str, int] = {}
    restored: list[dict[str, Any]] = []
    restore, train = Policy.restore, job._train

    def watched(policy: Policy, weights: dict[str, Any]) -> None:
        restored.append(weights)
        restore(policy, weights)

    def trained(method: str, *given: Any) -> Any:
        kept[method] = len(restored[-1])
        return train(method, *given)

    monkeypatch.setattr(Policy, "restore", watched)
    monkeypatch.setattr(job, "_train", trained)
    run: Callable[..., int] = job.run
    changes = ["steps=1", "compare_repeats=0", "entropy_change_every=0", "warmup.steps=1"]
    assert run(load_recipe(str(tiny_file(tmp_path)), changes), tmp_path / "run") == 0
    assert kept["grpo"] > 0 == kept["clip_cov"]
