"""A step's answers: sampled, scored and compared."""

from __future__ import annotations

import random
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.answers import Answers, answers_to, hand_over, joined
from logitless.rl.engine import ranks
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout
from logitless.rl.tasks import Prompt, Scores, Task, join_scores
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import advantages_of

# Why the answers to a prompt are not trained on.
NO_REWARD, EQUAL_REWARDS, SURPLUS = "no reward", "equal rewards", "surplus"
# What sampling an answer takes, by the names of the stopwatch, and what of it was for nothing.
SAMPLING = ("rollout body", "rollout head", "rollout server", "reward")
DROPPED = "dropped answers"


class TooFewGroups(RuntimeError):
    """The rounds of a step are over, and its batch has places left."""


class Sampled(NamedTuple):
    """All answers of a step, of all its rounds."""

    prompts: list[Any]  # texts, or chat messages
    answers: Answers
    # of each prompt why its answers are not trained on; None: they are
    fates: list[str | None]
    rounds: int


class Experience(NamedTuple):
    """The answers that a step trains on, and their worth."""

    rollout: Rollout  # of B = prompts * group sequences
    rewards: Tensor  # [prompts, group], on the host
    advantages: Tensor  # [B]
    sampled: Sampled

    @property
    def failures(self) -> list[str]:
        """What went wrong with rewards."""
        return self.sampled.answers.scores.failures


def collect(
    policy: Policy, task: Task, recipe: Recipe, advantage: str, step: int, clock: Stopwatch
) -> Experience:
    """Prompts of the task, sampled answers, their rewards and advantages; a function of
    (seed, step) and the weights. With `rollout.filter_groups` a step has as many rounds as its
    batch needs, and TooFewGroups is raised where those are not enough. Collective.
    """
    hand_over(policy, recipe, clock)
    sampled = sample_rounds(policy, task, recipe, step, clock)
    kept = torch.tensor([fate is None for fate in sampled.fates], device="cpu")
    rollout, _, scores = sampled.answers.of_prompts(kept)
    of_all = int(sampled.answers.rollout.mask.sum())
    clock.share(1.0 - int(rollout.mask.sum()) / of_all, SAMPLING, DROPPED)
    advantages = advantages_of(scores.rewards, advantage).to(rollout.mask.device)
    return Experience(rollout, scores.rewards, advantages, sampled)


def sample_rounds(
    policy: Policy, task: Task, recipe: Recipe, step: int, clock: Stopwatch
) -> Sampled:
    """Rounds of prompts until the batch is full: draws have the numbers that one round of all of
    them would give. Collective."""
    wanted = recipe.rollout
    rng = random.Random(f"prompts {recipe.seed} {step}")
    places = wanted.prompts if wanted.filter_groups else None
    prompts: list[Prompt] = []
    parts: list[Answers] = []
    rounds = wanted.max_rounds if wanted.filter_groups else 1
    for done in range(1, rounds + 1):
        asked = ranks.together(partial(task.prompts, rng, wanted.prompts_at_once))
        found = answers_to(
            policy, task, asked, recipe, clock, wanted.group, before=len(prompts),
            temperature=wanted.temperature, step=step, **wanted.truncation,
        )  # fmt: skip
        prompts, parts = [*prompts, *asked], [*parts, found]
        fates = fates_of(join_scores([part.scores for part in parts], None), places)
        if places is None or fates.count(None) == places:
            texts = [prompt.text for prompt in prompts]
            return Sampled(texts, joined(parts, policy.pad), fates, done)
    raise TooFewGroups(
        f"step {step + 1}: {fates.count(None)} of {len(prompts)} groups have rewards that differ, "
        f"and a batch has {places}: recipe key 'rollout.max_rounds' is {wanted.max_rounds}, and a "
        "resumed run may have more"
    )


def fates_of(scores: Scores, places: int | None) -> list[str | None]:
    """Of each prompt why its answers are not trained on; None: they are.

    places: how many prompts a batch has, in their order, none of those whose rewards are all equal:
    their advantages are 0. None: all that have rewards.
    """
    rewards = scores.rewards
    spread = (rewards != rewards[:, :1]).any(dim=1).tolist()
    fates: list[str | None] = []
    for has_reward, differs in zip(scores.scored.tolist(), spread, strict=True):
        fate = None
        if not has_reward:
            fate = NO_REWARD
        elif places is not None and not differs:
            fate = EQUAL_REWARDS
        elif places is not None and fates.count(None) == places:
            fate = SURPLUS
        fates.append(fate)
    return fates


def unscored(experience: Experience) -> str:
    """What went wrong with the rewards, for the log."""
    fates = experience.sampled.fates
    why = "; ".join(experience.failures)
    return f"skipped {fates.count(NO_REWARD)} of {len(fates)} prompts without a reward: {why}"


def distinct(texts: list[str], is_right: Tensor) -> int:  # [prompts, group] bool
    """How many different right answers the prompts have got."""
    group, found = is_right.shape[1], is_right.flatten().tolist()
    return len({(i // group, text) for i, text in enumerate(texts) if found[i]})


def describe(experience: Experience, right: float) -> Row:
    """What a step's answers say about the policy that wrote them; `right`: the least reward of a
    right answer. `tokens` and `covariance` are of those that are trained on, the others of all that
    have a reward."""
    rollout, _, advantages, sampled = experience
    tokens = int(rollout.mask.sum())
    per_token = advantages.repeat_interleave(rollout.lengths)
    logp = rollout.logp[rollout.mask]
    covariance = ll.covariance(logp, per_token, torch.ones_like(logp, dtype=torch.bool))
    drawn, texts, scores = sampled.answers.of_prompts(sampled.answers.scores.scored)
    rewards, fates = scores.rewards, sampled.fates
    filtered = fates.count(NO_REWARD) + fates.count(EQUAL_REWARDS)
    row = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(dim=1).mean()),
        "zero_spread": float((rewards == rewards[:, :1]).all(dim=1).float().mean()),
        "skipped_prompts": fates.count(NO_REWARD),
        # verl's name
        "train/num_gen_batches": sampled.rounds,
        "filtered_groups": filtered / len(fates),
        "surplus_groups": fates.count(SURPLUS) / len(fates),
        "entropy": float(drawn.entropy[drawn.mask].mean()),
        "covariance": float(covariance.mean),
        "distinct_right_answers": distinct(texts, rewards >= right) / len(rewards),
        "tokens": tokens,
        "tokens_per_sequence": int(drawn.mask.sum()) / len(texts),
    }
    if rollout.rollout_logp is None:
        return row
    off = (rollout.rollout_logp - rollout.logp)[rollout.mask].abs()
    return row | {"server_logp_gap": float(off.mean()), "server_logp_gap_max": float(off.max())}
