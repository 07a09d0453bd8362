"""The lines that a step's answers leave in completions.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from logitless.rl.experience import NO_REWARD, Experience
from logitless.rl.tracking.metrics import Row

# Digits of the entropies and log-probs of single tokens.
DIGITS = 4


def answer_rows(
    experience: Experience,
    step: int,
    shown: int,
    text_of: Callable[[list[int]], str],
    selected: Tensor,  # [B, T] bool, of the answers that are trained on
) -> list[Row]:
    """The lines of a step's answers, see tracking/completions.py; so many (`shown`) of the
    first prompt that is trained on have their tokens as well, and which of them are `selected`."""
    sampled = experience.sampled
    prompts, (rollout, texts, scores), fates = sampled[:3]
    group, lengths = scores.rewards.shape[1], rollout.lengths.tolist()
    rewards, advantages = scores.rewards.flatten().tolist(), iter(experience.advantages.tolist())
    entropies, logps, ids = rollout.entropy.tolist(), rollout.logp.tolist(), rollout.ids.tolist()
    columns = {f"reward/{name}": x.flatten().tolist() for name, x in scores.columns.items()}
    first = group * fates.index(None)
    pieces = {first + i for i in chosen(rewards[first : first + group], shown)}
    rows, trained = list[Row](), 0
    for i, text in enumerate(texts):
        n, fate = lengths[i], sampled.fate(i)
        entropy, logp = entropies[i][:n], logps[i][:n]
        advantage = next(advantages) if fate is None else None
        row: dict[str, Any] = {
            "step": step,
            "prompt": prompts[i // group],
            "completion": text,
            "reward": None if fate == NO_REWARD else rewards[i],
            **{key: None if fate == NO_REWARD else x[i] for key, x in columns.items()},
            "advantage": mean_of(advantage, n),
            "tokens": n,
            "truncated": bool(sampled.truncated[i]),
            "logp": sum(logp),
            "entropy": sum(entropy) / n,
        }
        if fate is not None:
            row["dropped"] = fate
        if scores.steps is not None:
            row["steps"] = None if fate == NO_REWARD else scores.steps[i]
        if i in pieces:
            tokens = ids[i][rollout.prompt_length :][:n]
            marks = [False] * n if fate is not None else selected[trained, :n].tolist()
            numbers = zip(tokens, entropy, logp, marks, strict=True)
            row["pieces"] = [
                [text_of([t]), round(h, DIGITS), round(p, DIGITS), *([True] if mark else [])]
                for t, h, p, mark in numbers
            ]
            if isinstance(advantage, list):
                row["advantages"] = [round(x, DIGITS) for x in advantage[:n]]
        trained += fate is None
        rows.append(row)
    return rows


def mean_of(advantage: float | list[float] | None, tokens: int) -> float | None:
    """An answer's own, or the mean of those of its tokens."""
    return sum(advantage[:tokens]) / tokens if isinstance(advantage, list) else advantage


def chosen(rewards: list[float], count: int) -> list[int]:
    """So many answers of a group, from the best to the worst in even steps."""
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    count = min(count, len(order))
    if count < 2:
        return order[:count]
    return [order[i * (len(order) - 1) // (count - 1)] for i in range(count)]
