"""The answers of a run, as JSON lines beside the metrics.

A line an answer: step, prompt, completion, reward, advantage, tokens, whether `max_new_tokens` has
cut it off (truncated), logp (the sum) and entropy (the mean), in nats; of several rewards each as
reward/NAME, before its weight. Answers that are not trained on have no advantage (null), and
`dropped` says why: "no reward" (theirs is null), "equal rewards", "surplus" or "truncated". The
answers that are shown also have `pieces`, their tokens one by one as [text, entropy, logp], which
the report colours; of those that the method's control has selected, [text, entropy, logp, true].

Where a reward is of steps, `steps` has of each the number of tokens up to its end, and its reward.
Where advantages are of tokens, `advantage` is their mean, and answers with `pieces` have all of
them, `advantages`.
"""

from __future__ import annotations

from pathlib import Path

from logitless.rl.tracking import metrics
from logitless.rl.tracking.metrics import Row

# In the folder of a method.
FILE = "completions.jsonl"
# Characters of a line on the terminal.
PROMPT_ROOM, ANSWER_ROOM = 30, 60


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
