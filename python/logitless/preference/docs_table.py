"""The tables of preference losses as text: for `logitless preference` and docs/preference.md."""

from __future__ import annotations

from collections.abc import Iterator

from logitless import tables
from logitless.preference.forms import DIVERGENCES, FORMS
from logitless.preference.table import TABLE


def text() -> str:
    """Functions, then dpo's forms: a name, its formula, its paper, a note."""
    rows = [(name, (x.formula, x.paper, x.note)) for name, x in TABLE.items()]
    forms = [(f"dpo.{name}", (x.formula, x.paper, x.note)) for name, x in FORMS.items()]
    return tables.listed(rows + forms)


def markdown() -> str:
    """docs/preference.md."""
    return "\n".join(_markdown()) + "\n"


def _markdown() -> Iterator[str]:
    yield _HEAD
    rows = [(f"`{n}`", tables.with_note(x.formula, x.note), x.paper) for n, x in TABLE.items()]
    yield from tables.markdown(("function", "formula", "paper"), rows)
    yield _FORMS
    rows = [(f"`{n}`", tables.with_note(x.formula, x.note), x.paper) for n, x in FORMS.items()]
    yield from tables.markdown(("form", "formula", "paper"), rows)
    yield _DIVERGENCES
    scores = [(f"`{n}`", x.formula) for n, x in DIVERGENCES.items()]
    yield from tables.markdown(("divergence", "score(x)"), scores)
    yield _RULES


_HEAD = """\
# Preference losses

Made by `logitless preference --markdown`; a test compares. `ll.preference` has offline and
preference losses as pure functions of log-probs, for NumPy arrays and torch tensors alike. The
log-probs come from the head without logits, also those of the reference:

```python dpo.py
import torch
import logitless as ll

torch.manual_seed(0)
body, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 1000, bias=False)
ref_body, ref_head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 1000, bias=False)
# two chosen answers of 3 and 2 tokens, then the rejected ones of 1 and 3, packed
inputs, targets = torch.randint(50, (9,)), torch.randint(1000, (9,))
borders = torch.tensor([0, 3, 5, 6, 9], dtype=torch.int32)


def sequence_logp(body, head):
    logp = ll.linear_token_stats(body(inputs), head.weight, targets).logp
    return ll.sequence_logp(logp, cu_seqlens=borders)


with torch.no_grad():
    ref_chosen, ref_rejected = sequence_logp(ref_body, ref_head).chunk(2)
chosen, rejected = sequence_logp(body, head).chunk(2)
loss = ll.preference.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1).mean()
loss.backward()
print(f"loss {loss:.4f}, gradient {head.weight.grad.norm():.4f}")

# the same with all logits
head.weight.grad = None


def full(body, head):
    logp = head(body(inputs)).log_softmax(-1)[torch.arange(9), targets]
    return torch.stack([part.sum() for part in logp.split([3, 2, 1, 3])]).chunk(2)


(chosen, rejected), references = full(body, head), full(ref_body, ref_head)
margin = (chosen - references[0].detach()) - (rejected - references[1].detach())
loss = -torch.nn.functional.logsigmoid(0.1 * margin).mean()
loss.backward()
print(f"loss {loss:.4f}, gradient {head.weight.grad.norm():.4f}")
```

```text dpo.py
loss 0.6630, gradient 0.3027
loss 0.6630, gradient 0.3027
```

In a formula s is the sigmoid, b beta, and m the margin between the log-ratios of chosen and
rejected answer to the reference. `ll.preference.TABLE[name]` is the row: the function, its formula,
its paper and a note.
"""
_FORMS = """
## Forms of dpo

`ll.preference.dpo(..., form=name)`. c and r are the log-ratios of chosen and rejected answer, m is
c - r, e label_smoothing. `ll.preference.FORMS[name]` is the row.
"""
_DIVERGENCES = """
`divergence=` replaces m by score(c) - score(r) in the forms that are functions of m alone (f-DPO,
Wang et al. 2023, arXiv:2309.16240):
"""
_RULES = """
## What holds for all of them

- A loss is a number for each pair, answer or step: the mean is yours. Only `aot` and `aot_unpaired`
  look at the whole batch.
- Losses are differentiable in the policy's log-probs (`oreo` also in the values, `spo` in the
  scores); all else is data, and refused where it requires a gradient. They are computed in float64,
  and are float64 where the first argument is, else float32.
- `sequence_logp` sums log-probs over tokens, packed or padded; with `average=True` they are means,
  as `ipo` has them in TRL, with `discount=` discounted sums.
- Nothing waits for a device, `implicit_rewards` excepted. On the CPU values that are not finite are
  refused by name and place; on a device they make the loss of their pair NaN or infinite."""
