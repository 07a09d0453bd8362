"""Batches of answers, the calls that are tried on them, and NumPy or torch around both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from logitless import advantages, reference

few = settings(max_examples=25, deadline=None)
KINDS = ("numpy", "torch")

# Functions of one group's rewards -> their oracle, of a list.
PER_GROUP: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "grpo": (advantages.grpo, reference.advantages.grpo),
    "dr_grpo": (advantages.dr_grpo, reference.advantages.dr_grpo),
    "rloo": (advantages.rloo, reference.advantages.rloo),
    "max_rl": (advantages.max_rl, reference.advantages.max_rl),
    "qae": (advantages.qae, reference.advantages.qae),
    "grpo_passk": (advantages.grpo_passk, reference.advantages.grpo_passk),
    "grpo_passk.unscaled": (
        lambda *a, **k: advantages.grpo_passk(*a, scale=False, **k),
        lambda r: reference.advantages.grpo_passk(r, scale=False),
    ),
    "qae.0.75": (
        lambda *a, **k: advantages.qae(*a, quantile=0.75, **k),
        lambda r: reference.advantages.qae(r, 0.75),
    ),
    **{
        f"pass_at_k.{n}": (
            lambda r, *a, n=n, **k: advantages.pass_at_k(r, n, *a, **k),
            lambda r, n=n: reference.advantages.pass_at_k(r, n),
        )
        for n in (1, 2, 3)
    },
}


def given(kind: str, *arrays: Any) -> tuple[Any, ...]:
    """The arrays, as tensors where kind is "torch"."""
    if kind == "numpy":
        return arrays
    import torch

    return tuple(None if x is None else torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)


def array(result: Any) -> Any:
    return result.numpy() if hasattr(result, "numpy") else result


@st.composite
def ragged(draw: Any, binary: bool = False) -> tuple[Any, Any, Any]:
    """rewards [B], groups [B], mask [B]: groups of 1 to 5 answers, shuffled, some not counted."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    names = draw(st.lists(st.integers(-(2**40), 2**40), min_size=4, max_size=4, unique=True))
    groups = np.repeat(names[: len(sizes)], sizes).astype(np.int64)
    n = groups.size
    one = st.sampled_from([0.0, 1.0]) if binary else st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, 3.0])
    rewards = np.array(draw(st.lists(one, min_size=n, max_size=n)))
    mask = np.array(draw(st.lists(st.booleans() | st.just(True), min_size=n, max_size=n)))
    order = np.array(draw(st.permutations(range(n))))
    rewards = np.where(mask, rewards, np.nan)
    return rewards[order], groups[order], mask[order]


def by_group(rewards: Any, groups: Any, mask: Any) -> list[Any]:
    """The places of each group's answers that count."""
    found = [np.flatnonzero((groups == g) & mask) for g in np.unique(groups)]
    return [places for places in found if places.size]


@st.composite
def token_batch(draw: Any) -> dict[str, Any]:
    """Padded rows [B, T] with holes and empty rows, NaN outside the mask, and groups [B]."""
    b, t = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    mask = np.arange(t) < rng.integers(0, t + 1, b)[:, None]
    mask &= rng.random((b, t)) > 0.2
    steps = mask & (rng.random((b, t)) > 0.5)

    def values(low: float, high: float, valid: Any = mask) -> Any:
        return np.where(valid, rng.uniform(low, high, (b, t)), np.nan)

    logp = values(-3, -0.01)
    return {
        "mask": mask,
        "steps": steps,
        "rewards": values(-1, 1),
        "process": values(-1, 1, steps),
        "values": values(-1, 1),
        "old_logp": logp,
        "sum_p2": np.exp(2 * logp) + values(0, 0.1),
        "weights": values(0.5, 1.5),
        "groups": rng.integers(0, 2, b) * 7 - 3,
        "lam": rng.random(b),
        "gamma": float(rng.random()),
    }
