"""The lines that a step's answers leave in completions.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from logitless.rl.experience import Experience
from logitless.rl.tracking.metrics import Row

# Digits of the entropies and log-probs of single tokens.
DIGITS = 4


def answer_rows(
    experience: Experience, step: int, shown: int, text_of: Callable[[list[int]], str]
) -> list[Row]:
    """The lines of a step's answers, see tracking/completions.py; so many of the first prompt's
    (`shown`) have their tokens as well."""
    rollout, group = experience.rollout, experience.rewards.shape[1]
    rewards, lengths = experience.rewards.flatten().tolist(), rollout.lengths.tolist()
    entropies, logps, ids = rollout.entropy.tolist(), rollout.logp.tolist(), rollout.ids.tolist()
    advantages = experience.advantages.tolist()
    pieces = set(chosen(rewards[:group], shown))
    rows = []
    for i, text in enumerate(experience.texts):
        n = lengths[i]
        entropy, logp = entropies[i][:n], logps[i][:n]
        row: dict[str, Any] = {
            "step": step,
            "prompt": experience.prompts[i // group],
            "completion": text,
            "reward": rewards[i],
            "advantage": advantages[i],
            "tokens": n,
            "logp": sum(logp),
            "entropy": sum(entropy) / n,
        }
        if i in pieces:
            tokens = ids[i][rollout.prompt_length :][:n]
            numbers = zip(tokens, entropy, logp, strict=True)
            row["pieces"] = [
                [text_of([t]), round(h, DIGITS), round(p, DIGITS)] for t, h, p in numbers
            ]
        rows.append(row)
    return rows


def chosen(rewards: list[float], count: int) -> list[int]:
    """So many answers of a group, from the best to the worst in even steps."""
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    count = min(count, len(order))
    if count < 2:
        return order[:count]
    return [order[i * (len(order) - 1) // (count - 1)] for i in range(count)]
