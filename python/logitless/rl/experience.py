"""A step's answers: sampled, scored and compared. Each rank samples and scores its share of the
prompts, and then all have everything: it is small beside a model."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import ranks
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, Server, join_rollouts, sample, sample_remotely
from logitless.rl.tasks import Prompt, Scores, Task, check_any, join_scores, load_task, score
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import advantages_of


class Experience(NamedTuple):
    """The answers of one step, and their worth; without the prompts that could not be scored."""

    prompts: list[Any]  # texts, or chat messages
    rollout: Rollout  # of B = prompts * group sequences
    texts: list[str]
    rewards: Tensor  # [prompts, group], on the host
    advantages: Tensor  # [B]
    skipped: int  # prompts that could not be scored
    failures: list[str]  # why


def task_of(recipe: Recipe) -> Task:
    task = recipe.task
    return load_task(task.name, task.options, task.prompts, task.reward)


def hand_over(policy: Policy, recipe: Recipe, clock: Stopwatch) -> None:
    """The policy's weights, to the server that samples, where there is one. Collective."""
    if recipe.rollout.server is None or recipe.rollout.server_folder is None:
        return
    server, folder = Server(recipe.rollout.server), Path(recipe.rollout.server_folder)

    def give() -> None:
        policy.save(folder)
        server.reload(folder)

    with clock("hand over"):
        ranks.first(give)


def sampler(recipe: Recipe) -> Callable[..., Rollout]:
    """`sample`, or as `sample`."""
    address = recipe.rollout.server
    return sample if address is None else partial(sample_remotely, Server(address))


class Answers(NamedTuple):
    rollout: Rollout
    texts: list[str]
    scores: Scores


def collect(
    policy: Policy, task: Task, recipe: Recipe, advantage: str, step: int, clock: Stopwatch
) -> Experience:
    """Prompts of the task, sampled answers, their rewards and advantages; a function of
    (seed, step) and the weights. Collective.
    """
    hand_over(policy, recipe, clock)
    rng = random.Random(f"prompts {recipe.seed} {step}")
    prompts = ranks.together(partial(task.prompts, rng, recipe.rollout.prompts))
    group, temperature = recipe.rollout.group, recipe.rollout.temperature
    rollout, texts, scores = answers_to(
        policy, task, prompts, recipe, clock, group, temperature=temperature, step=step,
        **recipe.rollout.truncation,
    )  # fmt: skip
    return scored([p.text for p in prompts], rollout, texts, scores, advantage)


def answers_to(
    policy: Policy,
    task: Task,
    prompts: list[Prompt],
    recipe: Recipe,
    clock: Stopwatch,
    group: int,
    **options: Any,
) -> Answers:
    """Sampled and scored answers; options: those of `sample` that the caller decides.

    Collective.
    """
    place = ranks.share(len(prompts))

    def of_own_prompts() -> Answers:
        own = prompts[place]
        rollout = sampler(recipe)(
            policy,
            policy.encode([p.text for p in own], recipe.rollout.chat_template),
            group=group,
            max_new_tokens=recipe.rollout.max_new_tokens,
            seed=recipe.seed,
            first=place.start * group,
            clock=clock,
            **options,
        )
        with clock("reward"):
            texts = rollout.texts(policy.tokenizer, special_tokens=recipe.task.special_tokens)
            return Answers(rollout, texts, score(task, own, texts, recipe.task.threshold))

    answers = of_all_ranks(ranks.together(of_own_prompts), policy)
    ranks.together(partial(check_any, answers.scores))
    return answers


def of_all_ranks(own: Answers, policy: Policy) -> Answers:
    """Those of all ranks, in the order of their prompts. Collective."""
    if ranks.alone():
        return own
    # an error stays with the rank that has it: a user's may not be fit to be sent
    sent = Answers(own.rollout.to("cpu"), own.texts, own.scores._replace(error=None))
    rollouts, texts, scores = zip(*ranks.each(lambda: sent), strict=True)
    return Answers(
        join_rollouts(rollouts, policy.pad).to(policy.device),
        [text for part in texts for text in part],
        join_scores(scores, own.scores.error),
    )


def scored(
    prompts: list[Any], rollout: Rollout, texts: list[str], scores: Scores, advantage: str
) -> Experience:
    """The answers to the prompts that have been scored."""
    rewards, good = scores.rewards[scores.scored], scores.scored
    skipped = int((~good).sum())
    if skipped:
        of_answer = good.repeat_interleave(scores.rewards.shape[1])
        rollout = rollout.sequences(of_answer.nonzero()[:, 0].to(rollout.mask.device))
        texts = [text for text, kept in zip(texts, of_answer.tolist(), strict=True) if kept]
        prompts = [prompt for prompt, kept in zip(prompts, good.tolist(), strict=True) if kept]
    advantages = advantages_of(rewards, advantage).to(rollout.mask.device)
    return Experience(prompts, rollout, texts, rewards, advantages, skipped, scores.failures)


def unscored(experience: Experience) -> str:
    """What went wrong with the rewards, for the log."""
    prompts = experience.skipped + len(experience.rewards)
    why = "; ".join(experience.failures)
    return f"skipped {experience.skipped} of {prompts} prompts without a reward: {why}"


def distinct(texts: list[str], is_right: Tensor) -> int:  # [prompts, group] bool
    """How many different right answers the prompts have got."""
    group, found = is_right.shape[1], is_right.flatten().tolist()
    return len({(i // group, text) for i, text in enumerate(texts) if found[i]})


def describe(experience: Experience, right: float) -> Row:
    """What a rollout says about the policy that wrote it; `right`: the least reward of a right
    answer."""
    _, rollout, texts, rewards, advantages, skipped, _ = experience
    tokens = int(rollout.mask.sum())
    per_token = advantages.repeat_interleave(rollout.lengths)
    logp = rollout.logp[rollout.mask]
    covariance = ll.covariance(logp, per_token, torch.ones_like(logp, dtype=torch.bool))
    row = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(dim=1).mean()),
        "skipped_prompts": skipped,
        "entropy": float(rollout.entropy[rollout.mask].mean()),
        "covariance": float(covariance.mean),
        "distinct_right_answers": distinct(texts, rewards >= right) / len(rewards),
        "tokens": tokens,
        "tokens_per_sequence": tokens / len(texts),
    }
    if rollout.rollout_logp is None:
        return row
    off = (rollout.rollout_logp - rollout.logp)[rollout.mask].abs()
    return row | {"server_logp_gap": float(off.mean()), "server_logp_gap_max": float(off.max())}
