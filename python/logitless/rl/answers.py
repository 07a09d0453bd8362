"""Answers to prompts, sampled and scored: each rank its share of the prompts, and then all have
everything, which is small beside a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from logitless.rl.engine import ranks
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import (
    Rollout,
    Server,
    join_rollouts,
    sample,
    sample_remotely,
    token_ends,
)
from logitless.rl.tasks import Prompt, Scores, Task, check_any, join_scores, load_task, score
from logitless.rl.tracking.stopwatch import Stopwatch


class Answers(NamedTuple):
    rollout: Rollout
    texts: list[str]
    scores: Scores

    def of_prompts(self, which: Tensor) -> Answers:  # [prompts] bool
        """Those to some of the prompts, without what went wrong."""
        if which.all():
            return self._replace(scores=self.scores._replace(failures=[]))
        of_answer = which.repeat_interleave(self.scores.rewards.shape[1])
        return Answers(
            self.rollout.sequences(of_answer.nonzero()[:, 0].to(self.rollout.mask.device)),
            [text for text, kept in zip(self.texts, of_answer.tolist(), strict=True) if kept],
            self.scores.of_prompts(which),
        )


def joined(parts: Sequence[Answers], pad: int, error: BaseException | None = None) -> Answers:
    """As if they had been asked for together; error: the last one of a reward, which has a cause
    and a place that cannot be sent."""
    rollouts, texts, scores = zip(*parts, strict=True)
    return Answers(
        join_rollouts(rollouts, pad),
        [text for part in texts for text in part],
        join_scores(scores, error),
    )


def task_of(recipe: Recipe) -> Task:
    task = recipe.task
    return load_task(
        task.name, task.options, task.prompts, task.reward, task.rewards, recipe.model.device
    )


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


def answers_to(
    policy: Policy,
    task: Task,
    prompts: list[Prompt],
    recipe: Recipe,
    clock: Stopwatch,
    group: int,
    before: int = 0,
    **options: Any,
) -> Answers:
    """Sampled and scored answers; before: how many prompts the step has had before these; options:
    those of `sample` that the caller decides. Collective.
    """
    place = ranks.share(len(prompts))

    def of_own_prompts() -> Answers:
        own = prompts[place]
        rollout = sampler(recipe)(
            policy,
            policy.encode([p.text for p in own], **recipe.rollout.template),
            group=group,
            max_new_tokens=recipe.rollout.max_new_tokens,
            seed=recipe.seed,
            first=(before + place.start) * group,
            clock=clock,
            **options,
        )
        with clock("reward"):
            special, ids = recipe.task.special_tokens, rollout.answers()
            texts = rollout.texts(policy.tokenizer, special_tokens=special)
            scores = score(
                task, own, texts, recipe.task.threshold, tokens=rollout.lengths.tolist(),
                seconds=recipe.task.reward_timeout,
                token_ends=lambda i, places: token_ends(
                    ids[i], places, policy.tokenizer, special_tokens=special
                ),
            )  # fmt: skip
            return Answers(rollout, texts, scores)

    answers = of_all_ranks(ranks.together(of_own_prompts), policy)
    ranks.together(partial(check_any, answers.scores))
    return answers


def of_all_ranks(own: Answers, policy: Policy) -> Answers:
    """Those of all ranks, in the order of their prompts. Collective."""
    if ranks.alone():
        return own
    # an error stays with the rank that has it: a user's may not be fit to be sent
    sent = Answers(own.rollout.to("cpu"), own.texts, own.scores._replace(error=None))
    everything = joined(ranks.each(lambda: sent), policy.pad, own.scores.error)
    return everything._replace(rollout=everything.rollout.to(policy.device))
