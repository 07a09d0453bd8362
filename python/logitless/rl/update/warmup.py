"""Supervised warm-up of a model made from scratch, so that RL starts from a policy that answers.

A full softmax over 151,936 entries for hundreds of steps is minutes on two cores, and almost all of
it teaches "not these 151,920". Three phases instead, a speed trick for toys and nothing else:

1. `steps` steps on a copy of the model whose vocabulary is only the entries the examples use;
2. one closed-form push: the head's unused rows get logit `unused_logit` on the states at hand, by
   ridge regression (w = (X'X + eps)^-1 X'1, so X w ~ 1; a single mean direction does not do);
3. `full_steps` steps over the whole vocabulary, through `linear_token_stats`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import Policy, as_policy
from logitless.rl.recipe import Recipe
from logitless.rl.rollout import Rollout, given_answers, hidden_states

# Without it, one seed in four of the bundled recipe never learns.
CLIP_NORM = 1.0

Report = Callable[[int, float], None]  # steps done, loss


class Pool(NamedTuple):
    """Examples as one padded rollout-shaped batch."""

    rollout: Rollout
    used: Tensor  # [U] ids the examples use, sorted


def warm_up(
    policy: Policy, prompts: Sequence[Any], answers: list[str], recipe: Recipe, report: Report
) -> None:
    """Teaches `policy` the answers to the prompts; ValueError where its head is tied."""
    warmup = recipe.warmup
    if policy.tied:
        raise ValueError(
            "warmup moves rows of the head alone, and this model ties them to the embedding"
        )
    pool = make_pool(policy, prompts, answers, recipe.rollout.template)
    generator = torch.Generator().manual_seed(recipe.seed)

    def batch() -> Rollout:
        index = torch.randint(
            len(pool.rollout.mask), (warmup.batch,), generator=generator, device="cpu"
        )
        return pool.rollout.sequences(index.to(policy.device))

    if warmup.steps:
        _restricted_steps(policy, pool.used, warmup.steps, warmup.lr, batch, report)
        with torch.no_grad():
            states = torch.cat([hidden_states(policy, batch()) for _ in range(8)])
            push_unused(policy.weight, states, pool.used, warmup.unused_logit, warmup.unused_scale)
    policy.embedding.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in policy.model.parameters() if p.requires_grad], lr=warmup.full_lr, fused=True
    )
    for step in range(warmup.full_steps):
        examples = batch()
        stats = ll.linear_token_stats(
            hidden_states(policy, examples), policy.weight, examples.targets, **policy.head_options
        )
        loss = -stats.logp.mean()
        _step(optimizer, loss)
        report(warmup.steps + step + 1, float(loss.detach()))
    policy.model.zero_grad()


def make_pool(
    policy: Policy, prompts: Sequence[Any], answers: list[str], template: dict[str, Any]
) -> Pool:
    prompt_ids, answer_ids = policy.encode(prompts, **template), policy.encode_answers(answers)
    ended = [[*ids, policy.eos] for ids in answer_ids]
    rollout = given_answers(prompt_ids, ended, policy.pad)
    return Pool(rollout.to(policy.device), rollout.ids.unique().to(policy.device))


def push_unused(
    weight: Tensor,  # [V, H], changed in place
    states: Tensor,  # [N, H]
    used: Tensor,  # [U]
    logit: float,
    scale: float,
) -> None:
    """weight[unused] = scale * weight[unused] + logit * w, with states @ w ~ 1."""
    gram = states.T @ states
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    direction = torch.linalg.solve(gram + ridge, states.sum(dim=0))
    unused = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    unused[used] = False
    weight[unused] = scale * weight[unused] + logit * direction


def _restricted_steps(
    policy: Policy,
    used: Tensor,  # [U]
    steps: int,
    lr: float,
    batch: Callable[[], Rollout],
    report: Report,
) -> None:
    """Trains a copy of the model whose vocabulary is `used`, then writes it back."""
    small = _with_vocabulary(policy, used)
    rows = torch.zeros(len(policy.weight), dtype=torch.long, device=policy.device)
    rows[used] = torch.arange(len(used), device=policy.device)
    optimizer = torch.optim.AdamW(small.model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        examples = batch()
        examples = replace(examples, ids=rows[examples.ids])
        # [N, U] with U near 20: small enough to hold.
        scores = hidden_states(small, examples) @ small.weight.T
        loss = torch.nn.functional.cross_entropy(scores, examples.targets)
        _step(optimizer, loss)
        schedule.step()
        report(step + 1, float(loss.detach()))
    with torch.no_grad():
        _copy_body(small, policy)
        policy.weight[used] = small.weight
        policy.embedding[used] = small.embedding


def _with_vocabulary(policy: Policy, used: Tensor) -> Policy:
    config = copy.deepcopy(policy.model.config)
    config.vocab_size = len(used)
    config.pad_token_id = config.eos_token_id = None
    model = type(policy.model)(config).to(policy.device)
    small = as_policy(model, policy.tokenizer, draw_padding=True)
    with torch.no_grad():
        _copy_body(policy, small)
        small.weight.copy_(policy.weight[used])
        small.embedding.copy_(policy.embedding[used])
    return small


def _copy_body(source: Policy, target: Policy) -> None:
    into = dict(target.body.named_parameters())
    for name, parameter in source.body.named_parameters():
        if parameter is not source.embedding:
            into[name].copy_(parameter)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], CLIP_NORM)
    optimizer.step()
