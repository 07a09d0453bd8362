"""Whole steps of this library's trainer, by the calls of `logitless.rl.train`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.trainers.models import reward
from benchmarks.trainers.spans import (
    BESIDE,
    BODY,
    GENERATION,
    OPTIMIZER,
    REST,
    UPDATE,
    Meter,
    Spans,
    Step,
)
from benchmarks.trainers.workload import Shape, Workload, shape_of
from logitless.rl.engine import LocalEngine
from logitless.rl.experience import collect, describe
from logitless.rl.policy import as_policy
from logitless.rl.recipe import Recipe, make_spec, recipe_of
from logitless.rl.tasks import Prompt
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import advantage_name, update_policy

METHOD = "grpo"


class Options(NamedTuple):
    """Of the recipe."""

    tail_mass: float = 0.0
    share_prompts: bool = False
    body_dtype: str = "float32"
    micro_tokens: int = 0


EXACT = Options()

# The trainer's names of what it times.
PLACES = {
    "rollout body": (GENERATION, BODY),
    "rollout head": (GENERATION, BESIDE),
    "reward": (REST, BESIDE),
    "train body": (UPDATE, BODY),
    "train head": (UPDATE, BESIDE),
    "optimizer": (OPTIMIZER, BESIDE),
}


class Clock(Stopwatch):
    def __init__(self, spans: Spans) -> None:
        super().__init__()
        self._spans = spans

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        with self._spans.of(*PLACES[part]):
            yield


class Questions:
    """All prompts of the workload, whose answers are worth what TRL's are."""

    def __init__(self, work: Workload) -> None:
        self._texts = work.texts()

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        return [Prompt(text) for text in rng.sample(self._texts, n)]

    def reward(self, prompt: Prompt, completion: str) -> float:
        return reward(completion)


def recipe(work: Workload, options: Options) -> Recipe:
    rollout = {
        "prompts": work.prompts, "group": work.group, "max_new_tokens": work.length,
        "chat_template": work.is_chat,
    }  # fmt: skip
    rates = dict.fromkeys(("body_lr", "head_lr", "embedding_lr"), 1e-5)
    update = {
        "minibatches": work.minibatches, "tail_mass": options.tail_mass,
        "micro_tokens": options.micro_tokens, **rates,
    }  # fmt: skip
    methods = {METHOD: {"preset": METHOD}}
    return recipe_of({"rollout": rollout, "update": update, "methods": methods}, "benchmark")


def run(work: Workload, options: Options = EXACT) -> tuple[list[Step], Shape]:
    torch.manual_seed(0)
    policy, task, asked = as_policy(*work.make()), Questions(work), recipe(work, options)
    policy = replace(policy.in_dtype(options.body_dtype), share_prompts=options.share_prompts)
    spec = make_spec(METHOD, asked.methods[METHOD], work.length)
    advantage = advantage_name(asked, METHOD)
    engine, meter = LocalEngine(policy, asked.update, 1 + work.steps), Meter(work.device)
    clock = Clock(meter.spans)
    for step in range(1 + work.steps):
        meter.begin()
        with meter.spans.of(GENERATION):
            experience = collect(policy, task, asked, advantage, step, clock)
        with meter.spans.of(UPDATE):
            update_policy(
                engine, experience.rollout, experience.advantages, spec, asked, step, clock
            )
        engine.advance()
        describe(experience, asked.task.right)
        meter.end()
    prompts = sum(map(len, policy.encode(work.texts(), work.is_chat)))
    return meter.steps[1:], shape_of(policy.model, prompts, int(experience.rollout.mask.sum()))
