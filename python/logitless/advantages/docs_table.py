"""The table of advantages as text: for `logitless advantages` and for docs/advantages.md."""

from __future__ import annotations

from collections.abc import Iterator

from logitless import tables
from logitless.advantages.table import TABLE


def text() -> str:
    """A name, its formula, its paper, a note: as `logitless advantages` prints them."""
    return tables.listed([(name, (x.formula, x.paper, x.note)) for name, x in TABLE.items()])


def markdown() -> str:
    """docs/advantages.md."""
    return "\n".join(_markdown()) + "\n"


def _markdown() -> Iterator[str]:
    yield _HEAD
    rows = [(f"`{n}`", tables.with_note(x.formula, x.note), x.paper) for n, x in TABLE.items()]
    yield from tables.markdown(("function", "formula", "paper"), rows)
    yield _RULES


_HEAD = """\
# Advantages

Made by `logitless advantages --markdown`; a test compares. `ll.advantages` has pure functions from
rewards to advantages, for NumPy arrays and torch tensors alike:

```python
import logitless as ll

a = ll.advantages.grpo(rewards)                    # [G, K]: K answers to each of G prompts
a = ll.advantages.grpo(rewards, groups)            # [B]: groups are ids, in any order
a = ll.advantages.grpo(rewards, mask=scored)       # the others do not count, and get 0
out = ll.linear_policy_loss(..., advantages=a.flatten(), ...)
```

In a formula r is the reward of an answer, and mean and std are over the K answers of its group.
`ll.advantages.TABLE[name]` is the row: the function, its formula, its paper and a note.
"""
_RULES = """
## What holds for all of them

- Advantages are data: float64 where the rewards are, else float32, computed in float64. Rewards
  that require a gradient are refused, and so are rewards that are NaN or infinite, by name and
  place. A device is asked for that alone; nothing else waits for it.
- A group of equal rewards gets exactly 0.
- A single answer has nothing to be compared with. Functions of whole answers give it 0; those of
  tokens whose baseline others make (`optimal_token_baseline`, `pure`) give it the baseline 0.
- All but `gpg`, `gdpo` and `reinforce_plus_plus*` look at one group at a time, so whole groups may
  be split over micro-batches and ranks at will. Those four look at the batch: pass all of it.
- Tokens outside the mask are skipped, also in the middle of an answer, and get 0. `returns` and
  `whiten`, which functions of the table are made of, are there for themselves."""
