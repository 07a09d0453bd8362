"""Advantages of tokens, from the rewards of an answer's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.recipe import Recipe

# A step's end, as the number of tokens up to it, and its reward.
Steps = Sequence[tuple[int, float]]
# What a recipe calls them: what the rewards of steps that end in one token make together.
OF_STEPS: Mapping[str, Callable[[float, float], float]] = {
    "pure": min,
    "process": lambda a, b: a + b,
}


def step_advantages(
    columns: Mapping[str, Tensor],  # [prompts, group] each
    steps: Sequence[Steps],  # of each answer
    mask: Tensor,  # [B, T] bool: the sampled tokens of B = prompts * group answers
    recipe: Recipe,
    kind: str,
) -> Tensor:  # [B, T] fp32
    """The advantages of PURE, arXiv:2504.15275, or with kind "process" those of sums: with r the
    rewards of one answer's steps at their last tokens, and K answers to a prompt,

        r = softmax(-r / temperature) * r                      # of kind "pure"
        R = r's sum from a token on
        rloo(rewards of other columns) + weight * (R - sum of the others' R / ((K - 1) * limit))

    The last baseline is a mean over tokens, with `rollout.max_new_tokens` as the limit; each column
    counts by its weight. Where the rewards are, on the host.
    """
    name = stepwise(recipe)
    assert name is not None
    mask, rewards = mask.cpu(), recipe.task.rewards
    others = torch.zeros_like(columns[name], dtype=torch.float64)
    for other, column in columns.items():
        if other != name:
            others += rewards[other].weight * column.double()
    of_answers: Tensor = ll.advantages.rloo(others)
    of_steps = of_process(
        steps, mask, len(others), kind, recipe.update.pure_temperature,
        recipe.rollout.max_new_tokens,
    )  # fmt: skip
    whole = of_answers.flatten()[:, None] + rewards[name].weight * of_steps
    return torch.where(mask, whole.cpu(), 0.0).float()


def of_process(
    steps: Sequence[Steps], mask: Tensor, prompts: int, kind: str, temperature: float, limit: int
) -> Tensor:  # [B, T] fp64
    """The part of the steps, before its weight; it counts where the mask is true."""
    rewards, ends = on_tokens(steps, mask, OF_STEPS[kind])
    groups = torch.arange(prompts, device="cpu").repeat_interleave(len(mask) // prompts)
    if kind == "pure":
        found: Tensor = ll.advantages.pure(
            rewards, ends, groups, mask, temperature=temperature, max_length=limit
        )
        return found
    gained: Tensor = ll.advantages.returns(rewards, mask)
    totals = gained.sum(dim=1).view(prompts, -1)
    others = totals.sum(dim=1, keepdim=True) - totals
    baseline = others / ((totals.shape[1] - 1) * limit)
    return gained - baseline.view(-1, 1)


def on_tokens(
    steps: Sequence[Steps], mask: Tensor, merged: Callable[[float, float], float]
) -> tuple[Tensor, Tensor]:  # [B, T] fp64 and bool
    """The rewards at the last tokens of steps, and where these are."""
    rewards = torch.zeros(mask.shape, dtype=torch.float64, device="cpu")
    ends = torch.zeros(mask.shape, dtype=torch.bool, device="cpu")
    for i, of_answer in enumerate(steps):
        at: dict[int, float] = {}
        for end, reward in of_answer:
            at[end - 1] = merged(at[end - 1], reward) if end - 1 in at else reward
        places = list(at)
        rewards[i, places] = torch.tensor(list(at.values()), dtype=torch.float64, device="cpu")
        ends[i, places] = True
    return rewards, ends


def stepwise(recipe: Recipe) -> str | None:
    """The name of the reward that is of steps."""
    rewards = recipe.task.rewards.items()
    return next((name for name, reward in rewards if reward.steps is not None), None)


def check_steps(recipe: Recipe, method: str, kind: str, spec: Any) -> None:  # PolicyLossSpec
    """ValueError for what does not go with advantages of tokens."""
    if kind not in OF_STEPS:
        return
    what = f"advantage {kind} of methods.{method}"
    if stepwise(recipe) is None:
        raise ValueError(
            f"recipe key 'task.rewards' must have a reward with steps for the {what}, got "
            f"{', '.join(recipe.task.rewards) or 'none'}"
        )
    if recipe.rollout.filter_groups:
        raise ValueError(
            f"recipe key 'rollout.filter_groups' must be false with the {what}: answers with equal "
            "rewards have advantages where their steps differ; got true"
        )
    if recipe.task.threshold is not None:
        raise ValueError(
            f"recipe key 'task.threshold' must be null with the {what}: it would cut the rewards "
            f"of answers, and not those of steps; got {recipe.task.threshold}"
        )
    if spec.ratio in ("sequence", "sequence_sum"):
        raise ValueError(
            f"recipe key 'methods.{method}.advantage' must not be {kind} with a loss of ratio "
            f"'{spec.ratio}', which has one advantage a sequence: preset gspo_token, of ratio "
            "'sequence_token', takes those of tokens"
        )
