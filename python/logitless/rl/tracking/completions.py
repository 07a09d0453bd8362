"""The answers of a run, as JSON lines beside the metrics.

A line an answer: step, prompt, completion, reward, advantage, tokens, logp (the sum) and entropy
(the mean), in nats. The answers that are shown also have `pieces`, their tokens one by one as
[text, entropy, logp], which the report colours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

if TYPE_CHECKING:
    from logitless.rl.experience import Experience

# In the folder of a method.
FILE = "completions.jsonl"
# Digits of the entropies and log-probs of single tokens.
DIGITS = 4
# Characters of a line on the terminal.
PROMPT_ROOM, ANSWER_ROOM = 30, 60


def rows_of(
    experience: Experience, step: int, shown: int, text_of: Callable[[list[int]], str]
) -> list[Row]:
    """The lines of a step's answers."""
    rollout, group = experience.rollout, experience.rewards.shape[1]
    rewards, lengths = experience.rewards.flatten().tolist(), rollout.lengths.tolist()
    pieces = set(chosen(rewards[:group], shown))
    rows = []
    for i, text in enumerate(experience.texts):
        n = lengths[i]
        entropy, logp = rollout.entropy[i, :n].tolist(), rollout.logp[i, :n].tolist()
        row: dict[str, Any] = {
            "step": step,
            "prompt": experience.prompts[i // group],
            "completion": text,
            "reward": rewards[i],
            "advantage": float(experience.advantages[i]),
            "tokens": n,
            "logp": sum(logp),
            "entropy": sum(entropy) / n,
        }
        if i in pieces:
            ids = rollout.ids[i, rollout.prompt_length :][:n].tolist()
            numbers = zip(ids, entropy, logp, strict=True)
            row["pieces"] = [
                [text_of([t]), round(h, DIGITS), round(p, DIGITS)] for t, h, p in numbers
            ]
        rows.append(row)
    return rows


def shown(folder: Path) -> list[Row]:
    """The answers of a method's first and last step that have `pieces`."""
    rows = [row for row in metrics.read(folder / FILE) if "pieces" in row]
    ends = {row["step"] for row in (*rows[:1], *rows[-1:])}
    return [row for row in rows if row["step"] in ends]


def one_line(row: Row) -> str:
    """Reward, prompt and completion of an answer, as far as a line has room for them."""
    prompt = row["prompt"]
    prompt = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    text = f"{_shortened(prompt, PROMPT_ROOM)} -> {_shortened(row['completion'], ANSWER_ROOM)}"
    return f"    {row['reward']:6.2f}  {text}"


def _shortened(text: str, room: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= room else text[: room - 3] + "..."


def chosen(rewards: list[float], count: int) -> list[int]:
    """So many answers of a group, from the best to the worst in even steps."""
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    count = min(count, len(order))
    if count < 2:
        return order[:count]
    return [order[i * (len(order) - 1) // (count - 1)] for i in range(count)]
