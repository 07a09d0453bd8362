"""A step's answers: sampled, scored and compared."""

from __future__ import annotations

import math
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
from logitless.rl.tasks import Answered, Prompt, PromptFile, Scores, Task, join_scores, of_user
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import OF_STEPS, advantages_of, of_each_token, step_advantages

# Why the answers to a prompt are not trained on.
NO_REWARD, EQUAL_REWARDS, SURPLUS = "no reward", "equal rewards", "surplus"
# Why one answer is not, though others to its prompt are.
TRUNCATED = "truncated"
# What sampling an answer takes, by the names of the stopwatch, and what of it was for nothing.
SAMPLING = ("rollout body", "rollout head", "rollout server", "reward")
DROPPED = "dropped answers"


class TooFewGroups(RuntimeError):
    """The rounds of a step are over, and its batch has places left; or all of it is truncated."""


class Sampled(NamedTuple):
    """All answers of a step, of all its rounds."""

    prompts: list[Any]  # texts, or chat messages
    answers: Answers
    # of each prompt why its answers are not trained on; None: they are
    fates: list[str | None]
    rounds: int
    # [B] bool: answers that the limit of tokens has cut off
    truncated: Tensor
    # whether these are not trained on
    masked: bool = False

    def fate(self, i: int) -> str | None:
        """Why the i-th answer is not trained on; None: it is."""
        of_prompt = self.fates[i // self.answers.scores.rewards.shape[1]]
        if of_prompt is None and self.masked and self.truncated[i]:
            return TRUNCATED
        return of_prompt

    def answered(self) -> Answered:
        """What rewards that follow training are told of a step."""
        scored = self.answers.scores.scored
        rollout, texts, scores = self.answers.of_prompts(scored)
        return Answered(
            [
                text
                for text, has_reward in zip(self.prompts, scored.tolist(), strict=True)
                if has_reward
            ],
            texts,
            rollout.lengths.tolist(),
            {name: column.tolist() for name, column in scores.columns.items()},
        )


class Experience(NamedTuple):
    """The answers that a step trains on, and their worth."""

    rollout: Rollout  # of B = prompts * group sequences, or fewer without truncated ones
    rewards: Tensor  # [prompts, group], on the host
    advantages: Tensor  # [B], or of tokens [B, T]
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
    advantages = compared(scores, rollout, recipe, advantage).to(rollout.mask.device)
    if recipe.rollout.mask_truncated:
        # after the advantages: a group is compared as a whole
        whole = trained_on(sampled, step).to(rollout.mask.device)
        rollout, advantages = rollout.sequences(whole), advantages[whole]
    of_all = int(sampled.answers.rollout.mask.sum())
    clock.share(1.0 - int(rollout.mask.sum()) / of_all, SAMPLING, DROPPED)
    return Experience(rollout, scores.rewards, advantages, sampled)


def compared(scores: Scores, rollout: Rollout, recipe: Recipe, advantage: str) -> Tensor:
    """The advantages of whole groups, on the host: [B], or of tokens [B, T]."""
    if advantage in OF_STEPS:
        assert scores.steps is not None
        return step_advantages(scores.columns, scores.steps, rollout.mask, recipe, advantage)
    return advantages_of(scores.rewards, advantage)


def trained_on(sampled: Sampled, step: int) -> Tensor:
    """The places, among the answers to prompts that are trained on, of those that are not cut
    off."""
    cut = [
        truncated
        for i, truncated in enumerate(sampled.truncated.tolist())
        if sampled.fate(i) in (None, TRUNCATED)
    ]
    if all(cut):
        raise TooFewGroups(
            f"step {step + 1}: all {len(cut)} answers are truncated, and recipe key "
            "'rollout.mask_truncated' leaves none of them to train on: raise rollout.max_new_tokens"
        )
    return torch.tensor([i for i, is_cut in enumerate(cut) if not is_cut], device="cpu")


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
        asked = ranks.together(partial(ask, task, rng, wanted.prompts_at_once))
        found = answers_to(
            policy, task, asked, recipe, clock, wanted.group, before=len(prompts),
            temperature=wanted.temperature, step=step, **wanted.truncation,
        )  # fmt: skip
        prompts, parts = [*prompts, *asked], [*parts, found]
        fates = fates_of(join_scores([part.scores for part in parts], None), places)
        if places is None or fates.count(None) == places:
            texts = [prompt.text for prompt in prompts]
            answers = joined(parts, policy.pad)
            truncated = answers.rollout.truncated(policy.ends).cpu()
            return Sampled(texts, answers, fates, done, truncated, wanted.mask_truncated)
    raise TooFewGroups(
        f"step {step + 1}: {fates.count(None)} of {len(prompts)} groups have rewards that differ, "
        f"and a batch has {places}: recipe key 'rollout.max_rounds' is {wanted.max_rounds}, and a "
        "resumed run may have more"
    )


def ask(task: Task | PromptFile, rng: random.Random, n: int) -> list[Prompt]:
    """The task's next n prompts."""
    with of_user("prompts(rng, n) of the task"):
        return task.prompts(rng, n)


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
    right answer. `tokens`, `covariance` and critic/advantages are of those that are trained on, the
    others of all that have a reward."""
    rollout, _, advantages, sampled = experience
    tokens = int(rollout.mask.sum())
    per_token = of_each_token(advantages, rollout.mask)
    logp = rollout.logp[rollout.mask]
    covariance = ll.covariance(logp, per_token, torch.ones_like(logp, dtype=torch.bool))
    has_reward = sampled.answers.scores.scored
    drawn, texts, scores = sampled.answers.of_prompts(has_reward)
    truncated = sampled.truncated.view(len(has_reward), -1)[has_reward]
    rewards, fates = scores.rewards, sampled.fates
    filtered = fates.count(NO_REWARD) + fates.count(EQUAL_REWARDS)
    row = {
        **scores.means,
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
        **of_verl("critic/rewards", rewards),
        **of_verl("critic/advantages", per_token),
        **of_verl("response_length", drawn.lengths),
        # verl counts answers of the largest length; one that ends there is not cut off
        "response_length/clip_ratio": float(truncated.float().mean()),
        **of_verl("prompt_length", drawn.attention[:, : drawn.prompt_length].sum(dim=1)),
        **of_largest(drawn.entropy[drawn.mask]),
    }
    if rollout.rollout_logp is None:
        return row
    off = (rollout.rollout_logp - rollout.logp)[rollout.mask].abs()
    return row | {"server_logp_gap": float(off.mean()), "server_logp_gap_max": float(off.max())}


def of_verl(name: str, values: Tensor) -> Row:
    """verl's three numbers of a quantity."""
    values = values.double()
    least, most = values.aminmax()
    found = {"mean": values.mean(), "max": most, "min": least}
    return {f"{name}/{key}": float(value) for key, value in found.items()}


def of_largest(entropies: Tensor) -> Row:
    """The share of all entropy that the fifth of the tokens with the largest has: 0.2 where all
    have the same; nothing where there is none."""
    total = float(entropies.double().sum())
    if not total:
        return {}
    largest = entropies.topk(math.ceil(len(entropies) / 5)).values
    return {"entropy_top20_share": float(largest.double().sum()) / total}
