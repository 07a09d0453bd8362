"""How good a policy is on prompts that it is not trained on."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from logitless.rl.answers import Answers, answers_to, hand_over, task_of
from logitless.rl.diversity import answer_entropy, balance, support_changes
from logitless.rl.engine import claim_device, ranks
from logitless.rl.experience import ask, distinct
from logitless.rl.policy import Policy, load_policy
from logitless.rl.recipe import Recipe, of_seeds, recipe_of
from logitless.rl.tasks import PromptFile, Task, following_of
from logitless.rl.tracking import checkpoint, metrics, run_folder
from logitless.rl.tracking.log import Log
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.stopwatch import Stopwatch

# The noise of every evaluation is that of one step, which no training gets to: two policies differ
# by what they have learnt, and by less luck.
STEP = 2**31 - 1
# What an evaluation has beside numbers: the right answers of each prompt (None: not scored), and
# what it evaluated: prompts, and how they are answered.
RIGHT_ANSWERS, EVALUATED = "right_answers", "evaluated"


def held_out(recipe: Recipe, task: Task) -> Task | PromptFile:
    """The task whose prompts an evaluation draws."""
    if recipe.evaluation.file is None:
        return task
    return PromptFile(recipe.evaluation.file, "evaluation.file")


def evaluate(policy: Policy, task: Task, recipe: Recipe) -> Row:
    """The numbers of `evaluation.prompts` prompts, a function of the seed and the weights.

    reward, reward_std, right (the share of right answers), pass@k for k = 1, 2, 4, ... up to the
    group, distinct_right_answers, answer_entropy and balance of a prompt (diversity.py), entropy
    and tokens of an answer are those of sampled answers; greedy_reward and greedy_right those of
    the likeliest token at every place. Of several rewards each has reward/NAME, reward_std/NAME and
    greedy_reward/NAME, before its weight. `skipped_prompts` had an answer that could not be scored,
    and count nowhere else. Beside these numbers RIGHT_ANSWERS and EVALUATED. Collective.
    """
    rng, wanted = random.Random(f"evaluation {recipe.seed}"), recipe.evaluation
    prompts = ranks.together(lambda: ask(held_out(recipe, task), rng, wanted.prompts))
    temperature = wanted.temperature or recipe.rollout.temperature
    hand_over(policy, recipe, Stopwatch())

    def answers(group: int, truncation: dict[str, Any]) -> Answers:
        return answers_to(
            policy, task, prompts, recipe, Stopwatch(), group,
            temperature=temperature, step=STEP, **truncation,
        )  # fmt: skip

    sampled, greedy = answers(wanted.group, recipe.rollout.truncation), answers(1, {"top_k": 1})
    how = [[prompt.text for prompt in prompts], wanted.group, temperature,
           recipe.rollout.truncation, recipe.rollout.max_new_tokens]  # fmt: skip
    return (
        of_sampled(sampled, recipe.task.right)
        | of_greedy(greedy, recipe.task.right)
        | {EVALUATED: hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]}
    )


def of_sampled(answers: Answers, least: float) -> Row:
    """`least`: the smallest reward of a right answer."""
    rollout, texts, scores = answers
    group = scores.rewards.shape[1]
    is_right = (scores.rewards >= least) & scores.scored[:, None]
    right = is_right[scores.scored].sum(dim=1).tolist()
    rates = {
        f"pass@{k}": sum(pass_at(k, group, n) for n in right) / len(right)
        for k in powers_of_two(group)
    }
    return {
        **scores.means,
        "right": sum(right) / (len(right) * group),
        **rates,
        "distinct_right_answers": distinct(texts, is_right) / len(right),
        **of_prompts(texts, is_right, scores.scored),
        "entropy": float(rollout.entropy[rollout.mask].mean()),
        "tokens": float(rollout.lengths.float().mean()),
        "skipped_prompts": int((~scores.scored).sum()),
    }


def of_prompts(
    texts: Sequence[str],
    is_right: Tensor,  # [prompts, group] bool
    scored: Tensor,  # [prompts] bool
) -> Row:
    """Means over the prompts that have rewards, and the right answers of each prompt."""
    group, found = is_right.shape[1], is_right.tolist()
    answered = [
        (texts[i * group : (i + 1) * group], found[i])
        for i, counts in enumerate(scored.tolist())
        if counts
    ]
    return {
        "answer_entropy": fmean(answer_entropy(of_one) for of_one, _ in answered),
        "balance": fmean(balance(*of_one) for of_one in answered),
        RIGHT_ANSWERS: [
            sum(of_one) if counts else None
            for of_one, counts in zip(found, scored.tolist(), strict=True)
        ],
    }


def against_start(row: Row, before: Sequence[Row]) -> Row:
    """`support_changes` since the first evaluation of the same prompts, answered in the same way;
    nothing where there was none."""
    for start in before:
        if start.get(EVALUATED) == row[EVALUATED]:
            return support_changes(start[RIGHT_ANSWERS], row[RIGHT_ANSWERS])
    return {}


def of_greedy(answers: Answers, least: float) -> Row:
    rewards = answers.scores.rewards[answers.scores.scored]
    return {
        **{f"greedy_{name}": mean for name, mean in answers.scores.means.items()},
        "greedy_right": float((rewards >= least).float().mean()),
    }


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that one of k answers is right, unbiased, where `right` of n were: Chen et al.
    2021, 1 - C(n - right, k) / C(n, k)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def record(
    log: Log, done: int, policy: Policy, task: Task, recipe: Recipe, before: Sequence[Row]
) -> Row:
    """Evaluates after so many steps, `before` having what was evaluated before, and writes that
    down. Collective."""
    row = {"step": done} | evaluate(policy, task, recipe)
    # the first one has lost and gained nothing
    row |= against_start(row, [*before, row])
    ranks.first(partial(log.evaluation, row))
    return row


def of_folder(folder: Path, overrides: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """(method, numbers) of the newest checkpoints in a run's folder, or in that of one method; of
    a run with several seeds (seed0/method, numbers). Where the run itself has evaluated the same at
    its start, what it has lost and gained since is among them.

    The recipe is the run's own, with changes to its keys. FileNotFoundError where there is no run.
    Of several ranks the first one yields what all have found.
    """
    try:
        with ranks.joined():
            saved = ranks.together(partial(checkpoints_of, folder, overrides))
            for name, path, recipe in saved:
                task, policy = ranks.together(partial(read, path, recipe))
                row = {"step": checkpoint.step_of(path)} | evaluate(policy, task, recipe)
                if ranks.is_first():
                    before = metrics.read(path.parent / metrics.EVALUATION_FILE)
                    yield name, metrics.numbers(row | against_start(row, before))
    except ranks.OtherRank as error:
        # one that has not been killed says itself what is wrong
        if error.lost:
            raise


def checkpoints_of(folder: Path, overrides: Iterable[str]) -> list[tuple[str, Path, Recipe]]:
    """(name, newest checkpoint, recipe of its seed) of the methods."""
    run = folder if run_folder.recipe_in(folder) is not None else folder.parent
    started = run_folder.recipe_in(run)
    if started is None:
        raise FileNotFoundError(f"{folder} is no folder of a run, nor of a method of one")
    recipe = recipe_of(started, str(run), overrides)
    methods = list(recipe.methods) if run == folder else [folder.name]
    names = {
        (Path(place) / method).as_posix(): one
        for place, one in of_seeds(recipe).items()
        for method in methods
    }
    saved = [(name, checkpoint.latest(run / name), one) for name, one in names.items()]
    found = [(name, path, one) for name, path, one in saved if path is not None]
    if not found:
        raise FileNotFoundError(f"{folder} has no checkpoint of {', '.join(names)}")
    claim_device(recipe.model.device)
    ranks.check_prompts("evaluation.prompts", recipe.evaluation.prompts)
    return found


def read(path: Path, recipe: Recipe) -> tuple[Task, Policy]:
    """The task with its rewards as they were, and the policy of a checkpoint."""
    policy = load_policy(path, recipe.model.draw_padding, recipe.model.device)
    task = task_of(recipe)
    following_of(task).load(path)
    return task, policy.in_dtype(recipe.model.body_dtype)
