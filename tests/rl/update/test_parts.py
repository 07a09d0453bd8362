"""What goes through the body at once: parts of a rollout, alike, and no column of padding."""

from __future__ import annotations

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
from logitless.rl.recipe import load_recipe  # noqa: E402
from logitless.rl.rollout import Rollout, hidden_states, sample  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update import EntropyProbe  # noqa: E402
from logitless.rl.update.update import alike  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402


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


@pytest.mark.parametrize("parts", [3, 20])
def test_a_probe_in_parts_is_the_same(started: tuple[LocalEngine, Rollout], parts: int) -> None:
    """20: more than there are sequences."""
    engine, rollout = started
    before = engine.policy.weight.detach().clone()
    changes = []
    for count in (1, parts):
        with torch.no_grad():
            engine.policy.weight.copy_(before)
        probe = EntropyProbe(engine, rollout, 1.0, count)
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
    assert alike(engine, rollout, index).tolist() == [1, 2, 0, 7, 4]
    engine.policy = replace(engine.policy, share_prompts=True)
    assert alike(engine, rollout, index).tolist() == [0, 1, 2, 4, 7]


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
