"""The table of presets as text: for `logitless losses` and for docs/losses.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from logitless import tables
from logitless.loss.spec import PolicyLossSpec
from logitless.loss.spec.corrections import corrections
from logitless.loss.spec.presets import TABLE


def choices(spec: PolicyLossSpec) -> str:
    """The surrogate with its numbers, and every other axis that is not at its default."""
    parts = [str(spec.surrogate)]
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name != "surrogate" and value != field.default:
            parts.append(f"{field.name}={value}")
    return ", ".join(parts)


def text() -> str:
    """A name, its formula, its choice on every axis, its paper, a note."""
    return tables.listed(
        [(name, (x.formula, choices(x.spec), x.paper, x.note)) for name, x in TABLE.items()]
    )


def markdown() -> str:
    """docs/losses.md."""
    return "\n".join(_markdown()) + "\n"


def _markdown() -> Iterator[str]:
    yield _HEAD
    rows = [
        (f"`{name}`", tables.with_note(x.formula, x.note), f"`{choices(x.spec)}`", x.paper)
        for name, x in TABLE.items()
    ]
    yield from tables.markdown(("preset", "formula", "spec", "paper"), rows)
    yield _CONTROLLERS
    yield _CALL
    yield _CORRECTIONS
    known = [(f"`{name}`", f"`{value}`") for name, value in corrections.items()]
    yield from tables.markdown(("name", "correction"), known)
    yield _OWN


_HEAD = """\
# Losses

Made by `logitless losses --markdown`; a test compares. In a formula r = exp(logp - old_logp), A is
the advantage, H the entropy and p the token's probability; `mean` is over the valid tokens of the
optimizer batch, `mean_i` over its sequences, `mean_t` over the valid tokens of one; sg stops the
gradient. `presets[name]` is the spec, and `dataclasses.replace` changes an axis of it. Where verl's
or TRL's numbers differ from these, [differences.md](differences.md) says why.
"""
_CONTROLLERS = """
## Coefficients that follow the entropy

A controller is plain state: `update` takes the entropy of the step that ended and returns the
number of the next, `state_dict` and `load_state_dict` carry it over a restart. The number is data
of a call: replace it in the spec at every step, and nothing is compiled or kept for it.

| controller | of | rule |
|---|---|---|
| `StepController` | `EntropyBonus` | up at or below the target, else off (arXiv:2505.22312) |
| `LogController` | `EntropyBonus` | its logarithm moves by the error (arXiv:1812.05905) |
| `RepoController` | `RepoR`, `RepoD` | doubles, halves or changes its sign (arXiv:2603.11682) |
| `PIController` | `Entropic` | proportional to the error and to the sum of all (arXiv:2511.15248) |
| `EntropyAnchor` | `Siren` | the `selected_entropy` of the first batch, kept (arXiv:2509.25133) |

```python
controller = ll.PIController(target=0.1)
for step in range(steps):
    spec = dataclasses.replace(spec, control=ll.Entropic(controller.coefficient))
    ...  # batch_stats, losses, optimizer
    controller.update(metrics["actor/entropy"])
```
"""
_CALL = """
## What a call may give

Without `old_logp` (None) a call is on-policy: its own logp is the old one, r is 1 and keeps its
gradient. `weights`, per token or per sequence, multiply the policy term alone: given importance
weights of a rollout, or zeros for tokens that are not to be learnt from. They leave the KL and
entropy terms, the normaliser, selection and all metrics but `actor/pg_loss` as they are.
"""
_CORRECTIONS = """
## Rollout corrections

`spec.correction`, by name in `corrections`; q = old_logp - rollout_logp.
"""
_OWN = """
## One of your own

A new combination is a row: `presets.add(name, spec, formula, paper)`. A new surrogate is a frozen
dataclass with a formula, and a new control one with a factor per token; KL, entropy, correction,
weights, micro-batches and the linear path stay the library's:

```python
@dataclass(frozen=True)
class Quadratic(ll.CustomSurrogate):
    width: float = 0.2

    def loss(self, t):  # torch; the slope comes from autograd
        r = t.log_ratio.exp()
        return -t.advantages * r + t.advantages.abs() * (r - 1) ** 2 / (2 * self.width)


@dataclass(frozen=True)
class Late(ll.CustomControl):
    after: int = 16

    def factor(self, tokens):  # NumPy, flat; data to the gradient
        return (tokens.ids % 4096 >= self.after) * 1.0


spec = ll.PolicyLossSpec(surrogate=Quadratic(), control=Late())
ll.presets.add("quadratic", spec, "mean of -A r + |A| (r - 1)^2 / 0.4", "yours")
```

In the library itself a surrogate is one function of `csrc/core/token_loss.h` with its value and
slope, a dataclass in `loss/spec/surrogates.py`, and its formula in the oracle
(`reference/terms.py`) and in `tests/support/losses/plain_losses.py`."""
