"""A prompt that is read once for all its answers: the same states, gradients and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import check_policy  # noqa: E402
from logitless.rl.policy import Policy, make_policy  # noqa: E402
from logitless.rl.rollout import Rollout, check_shared, hidden_states  # noqa: E402
from logitless.rl.rollout.states import layout  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

SHARED = "model.share_prompts=true"


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return make_policy(tiny_recipe(tmp_path, SHARED).model, seed=0)


def rollout_of(prompts: list[list[int]], answers: list[list[int]], pad: int = 0) -> Rollout:
    """An answer to each prompt; prompts are padded on the left, answers on the right."""
    start, most = (max(map(len, lines)) for lines in (prompts, answers))
    ids = [
        [pad] * (start - len(p)) + p + a + [pad] * (most - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    mask = torch.tensor([[t < len(a) for t in range(most)] for a in answers])
    front = torch.tensor([[t >= start - len(p) for t in range(start)] for p in prompts])
    none = torch.zeros(mask.shape)
    return Rollout(torch.tensor(ids), torch.cat([front, mask], dim=1), mask, none, none)


MIXED = rollout_of(
    # the first prompt comes back, out of order, and an answer is the end token alone
    [[5, 6, 7], [8, 9], [5, 6, 7], [9], [8, 9], [5, 6, 7]],
    [[1, 2, 3], [4], [1, 5], [6, 6, 6, 6], [2, 2], [3]],
)


def test_a_row_is_a_prompt_and_its_answers() -> None:
    shared = layout(rollout_of([[5, 6], [5, 6], [7]], [[1, 2, 3], [4, 9], [8]]), pad=0)
    assert shared.ids.tolist() == [[5, 6, 1, 2, 4], [7, 0, 0, 0, 0]]
    assert shared.positions.tolist() == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert shared.row.tolist() == [0, 0, 0, 0, 0, 1]
    assert shared.place.tolist() == [1, 2, 3, 1, 4, 0]
    assert shared.sees[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        # the second answer sees the prompt and itself
        [1, 1, 0, 0, 1],
    ]
    # a row of a mask without anything to see would be NaN
    assert bool(shared.sees.any(dim=2).all())


def gradients(policy: Policy, rollout: Rollout) -> tuple[Any, list[Any]]:
    states = hidden_states(policy, rollout)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in policy.body.parameters() if p.requires_grad]
    return states.detach(), list(torch.autograd.grad((states * weights).sum(), parameters))


def test_states_and_gradients_are_those_of_the_answers_apart(policy: Policy) -> None:
    states, found = gradients(policy, MIXED)
    expected, exact = gradients(replace(policy, share_prompts=False), MIXED)
    assert len(states) == len(MIXED.targets) == 13
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_a_part_of_the_sequences_shares_what_it_has(policy: Policy) -> None:
    index = torch.tensor([5, 3, 0])
    part = MIXED.sequences(index)
    with torch.no_grad():
        states = hidden_states(policy, part)
        expected = hidden_states(replace(policy, share_prompts=False), part)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_a_run_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    # one step: rounding grows from step to step
    options = ("steps=1", "compare_repeats=0", "entropy_change_every=1")
    rows = {}
    for name, more in {"apart": (), "shared": (SHARED,)}.items():
        assert run(tiny_recipe(tmp_path, *options, *more), tmp_path / name) == 0
        (rows[name],) = metrics.read(tmp_path / name / "clip_cov" / metrics.FILE)
    assert rows["shared"]["logp_gap"] < 1e-4
    # drawn before any forward that shares
    assert rows["shared"]["reward"] == rows["apart"]["reward"]
    for key in ("grad_norm", "entropy_change", "entropy_change_predicted", "actor/pg_loss"):
        assert rows["shared"][key] == pytest.approx(rows["apart"][key], rel=1e-3, abs=1e-6)


def mixes(module: Any, inputs: Any, output: Any) -> Any:
    """As a convolution or a recurrence does: a token has something of the one before it."""
    return output + output.roll(1, dims=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda model: model.model.embed_tokens.register_forward_hook(mixes),
            r"'model\.share_prompts' must be false for LlamaForCausalLM: its states are off by",
        ),
        (lambda model: model.set_attn_implementation("eager"), "attention 'sdpa', got 'eager'"),
    ],
)
def test_a_body_that_cannot_share_is_refused(
    policy: Policy, tmp_path: Path, spoil: Callable[[Any], Any], message: str
) -> None:
    update = tiny_recipe(tmp_path).update
    check_policy(policy, update)
    # bfloat16 rounds more than the check allows, and is not what it measures
    check_shared(policy.in_dtype("bfloat16"))
    check_policy(replace(policy, share_prompts=False), update)
    spoil(policy.model)
    with pytest.raises(ValueError, match=message):
        check_shared(policy)
    # which what is done before a run asks, or it finds what is worse: no rollout is right, either
    with pytest.raises(ValueError, match=r"model\.share_prompts|with padding on the left"):
        check_policy(policy, update)
