"""What a step costs: prompts shared by their answers or not, a body in float32 or bfloat16."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.studies.real_policy.setting import recipe_of
from logitless.rl.answers import task_of
from logitless.rl.engine import LocalEngine
from logitless.rl.experience import collect
from logitless.rl.policy import make_policy, silence_bars
from logitless.rl.recipe import make_spec
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import update_policy

# Fields of the policy.
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"share_prompts": False},
    "float32, prompts shared": {"share_prompts": True},
    "bfloat16, prompts shared": {"share_prompts": True, "body_dtype": torch.bfloat16},
}


def measure(rounds: int) -> dict[str, Any]:
    """CPU seconds of a first step, by turns: medians over the rounds, but for the first of them."""
    silence_bars()
    recipe = recipe_of("sums", "grpo", seed=0, steps=1)
    task, policy = task_of(recipe), make_policy(recipe.model, recipe.seed)
    spec = make_spec("grpo", recipe.methods["grpo"])
    engine = LocalEngine(policy, recipe.update)
    start = policy.snapshot()
    spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds + 1):
        for name, fields in VARIANTS.items():
            policy.restore(start)
            engine.policy = replace(policy, **fields)
            began = time.process_time()
            drawn = collect(engine.policy, task, recipe, "group_std", 0, Stopwatch())
            between = time.process_time()
            update_policy(engine, drawn.rollout, drawn.advantages, spec, recipe, 0, Stopwatch())
            ended = time.process_time()
            tokens = int(drawn.rollout.mask.sum())
            spent[name].append((between - began, ended - between, tokens))
    return {
        name: {
            "rollout": statistics.median(rollout for rollout, _, _ in times[1:]),
            "update": statistics.median(update for _, update, _ in times[1:]),
            "tokens": times[-1][2],
        }
        for name, times in spent.items()
    }
