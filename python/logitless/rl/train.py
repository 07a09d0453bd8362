"""One method's training run, top to bottom. What it leaves out: a value model, a reference model,
several machines.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

import logitless as ll
from logitless.rl import checkpoint, memory, metrics
from logitless.rl.advantages import advantages_of
from logitless.rl.dynamics import EntropyProbe
from logitless.rl.interrupt import StopRequest
from logitless.rl.metrics import Row, Stopwatch
from logitless.rl.model import Policy
from logitless.rl.progress import Progress
from logitless.rl.recipe import LossRecipe, Recipe, change, unknown_key
from logitless.rl.rollout import Rollout, sample
from logitless.rl.step import make_optimizer, update_policy
from logitless.rl.tasks import RIGHT, Prompt, Task

METRICS_FILE = "metrics.jsonl"


def make_spec(loss: LossRecipe) -> Any:
    """The PolicyLossSpec a recipe names, changed as it says."""
    if loss.preset not in ll.presets:
        raise ValueError(unknown_key("preset", loss.preset, ll.presets))
    spec = change(ll.presets[loss.preset], loss.change, f"methods.{loss.preset}.change")
    if spec.kl is not None:
        raise NotImplementedError(f"kl={spec.kl}: the trainer has no reference model yet")
    return spec


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
    spec = make_spec(recipe.methods[name])
    optimizer = make_optimizer(policy, recipe.update)
    saved = checkpoint.latest(folder) if resume else None
    start = 0
    if saved is not None:
        start = checkpoint.step_of(saved)
        checkpoint.load_weights(saved, policy)
        checkpoint.load_optimizer(saved, optimizer)
        progress.skip(min(start, recipe.steps))
    rows = metrics.keep_before(log, start)
    memory.reset_peak()

    for step in range(start, recipe.steps):
        began = time.perf_counter()
        clock = Stopwatch()

        prompts = task.prompts(
            random.Random(f"prompts {recipe.seed} {step}"), recipe.rollout.prompts
        )
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
        advantages = advantages_of(rewards, recipe.update.advantage)

        probe = None
        if recipe.entropy_change_every and step % recipe.entropy_change_every == 0:
            with clock("entropy probe"):
                probe = EntropyProbe(policy, rollout, recipe.rollout.temperature)
        update = update_policy(policy, optimizer, rollout, advantages, spec, recipe, step, clock)
        row = describe(rollout, rewards, texts, advantages)
        row |= {
            "step": step,
            "logp_gap": update.logp_gap,
            "selected_tokens": update.selected_tokens,
        }
        row |= update.metrics
        # One fp32 [tokens, vocabulary] tensor of a minibatch: what the head never holds.
        rows_at_once = row["tokens"] / recipe.update.minibatches
        row["full_logits_bytes"] = int(rows_at_once * len(policy.weight) * 4)
        if probe is not None:
            with clock("entropy probe"):
                change_ = probe.change()
            row |= {
                "entropy_change": change_.measured,
                "entropy_change_predicted": change_.predicted,
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
            checkpoint.save(folder, done, policy, optimizer)
        if stop.requested:
            break
    return rows


def score(task: Task, prompts: list[Prompt], texts: list[str], group: int) -> torch.Tensor:
    """[prompts, group]: 1.0 for a right answer, else 0.0; rewards below RIGHT are wrong answers."""
    right = [float(task.reward(prompts[i // group], text) >= RIGHT) for i, text in enumerate(texts)]
    return torch.tensor(right).view(len(prompts), group)


def describe(
    rollout: Rollout,
    rewards: torch.Tensor,  # [prompts, group]
    texts: list[str],
    advantages: torch.Tensor,  # [B]
) -> Row:
    """What a rollout says about the policy that wrote it."""
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
