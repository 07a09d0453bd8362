"""One method's training run, top to bottom. What it leaves out: a value model, a reference model,
several machines.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe, make_spec
from logitless.rl.rollout import Rollout, sample
from logitless.rl.tasks import RIGHT, Prompt, Task
from logitless.rl.tracking import checkpoint, memory, metrics
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.progress import Progress
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import EntropyProbe, advantages_of, update_policy

METRICS_FILE = "metrics.jsonl"


def train(
    name: str,
    policy: Policy,
    task: Task,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
    resume: bool,
) -> list[Row]:
    """Trains `policy` in place and returns its metrics, one row a step, also in
    folder/metrics.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / METRICS_FILE
    spec = make_spec(name, recipe.methods[name])
    engine = LocalEngine(policy, recipe.update)
    saved = checkpoint.latest(folder) if resume else None
    start = 0
    if saved is not None:
        start = checkpoint.step_of(saved)
        engine.load(saved)
        progress.skip(min(start, recipe.steps))
    rows = metrics.keep_before(log, start)
    memory.reset_peak()

    for step in range(start, recipe.steps):
        began = time.perf_counter()
        clock = Stopwatch()
        experience = collect(policy, task, recipe, step, clock)
        rollout, advantages = experience.rollout, experience.advantages

        probe = None
        if recipe.entropy_change_every and step % recipe.entropy_change_every == 0:
            with clock("entropy probe"):
                probe = EntropyProbe(policy, rollout, recipe.rollout.temperature)
        update = update_policy(engine, rollout, advantages, spec, recipe, step, clock)
        row = describe(experience)
        row |= {
            "step": step,
            "logp_gap": update.logp_gap,
            "selected_tokens": update.selected_tokens,
        }
        row |= update.metrics
        # One fp32 [tokens, vocabulary] tensor of a minibatch: the head never holds it.
        rows_at_once = row["tokens"] / recipe.update.minibatches
        row["full_logits_bytes"] = int(rows_at_once * len(policy.weight) * 4)
        if probe is not None:
            with clock("entropy probe"):
                change = probe.change()
            row |= {
                "entropy_change": change.measured,
                "entropy_change_predicted": change.predicted,
            }

        seconds = time.perf_counter() - began
        row |= {f"seconds/{part}": spent for part, spent in clock.seconds.items()}
        row |= {"seconds": seconds, "tokens_per_second": row["tokens"] / seconds}
        row["peak_memory_bytes"] = memory.peak()
        metrics.append(log, row)
        rows.append(row)
        progress.step(name, recipe.steps, row)
        done = step + 1
        if done == recipe.steps or done % recipe.checkpoint_every == 0 or stop.requested:
            checkpoint.save(folder, done, engine.save)
        if stop.requested:
            break
    return rows


class Experience(NamedTuple):
    """The answers of one step, and their worth."""

    rollout: Rollout  # of B = prompts * group sequences
    texts: list[str]
    rewards: Tensor  # [prompts, group]
    advantages: Tensor  # [B]


def collect(policy: Policy, task: Task, recipe: Recipe, step: int, clock: Stopwatch) -> Experience:
    """Prompts of the task, sampled answers, their rewards and advantages; a function of
    (seed, step) and the weights.
    """
    prompts = task.prompts(random.Random(f"prompts {recipe.seed} {step}"), recipe.rollout.prompts)
    rollout = sample(
        policy,
        policy.encode([p.text for p in prompts], recipe.rollout.chat_template),
        group=recipe.rollout.group,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        seed=recipe.seed,
        step=step,
        clock=clock,
    )
    with clock("reward"):
        texts = rollout.texts(policy.tokenizer)
        rewards = score(task, prompts, texts, recipe.rollout.group)
    return Experience(rollout, texts, rewards, advantages_of(rewards, recipe.update.advantage))


def score(task: Task, prompts: list[Prompt], texts: list[str], group: int) -> Tensor:
    """[prompts, group]: 1.0 where the reward is at least RIGHT, a right answer, else 0.0."""
    right = [float(task.reward(prompts[i // group], text) >= RIGHT) for i, text in enumerate(texts)]
    return torch.tensor(right).view(len(prompts), group)


def describe(experience: Experience) -> Row:
    """What a rollout says about the policy that wrote it."""
    rollout, texts, rewards, advantages = experience
    tokens = int(rollout.mask.sum())
    per_token = advantages.repeat_interleave(rollout.lengths)
    logp = rollout.logp[rollout.mask]
    covariance = ll.covariance(logp, per_token, torch.ones_like(logp, dtype=torch.bool))
    group = rewards.shape[1]
    right = rewards.flatten().tolist()
    distinct = {(i // group, text) for i, text in enumerate(texts) if right[i]}
    return {
        "reward": float(rewards.mean()),
        "entropy": float(rollout.entropy[rollout.mask].mean()),
        "covariance": covariance.mean,
        "distinct_right_answers": len(distinct) / len(rewards),
        "tokens": tokens,
        "tokens_per_sequence": tokens / len(texts),
    }
