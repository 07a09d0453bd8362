"""linear_sample draws from softmax(z): chi-squared, determinism, agreement with scoring."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import torch
from tolerances import assert_bitwise_equal

import logitless as ll
from logitless import reference


def draw(h: torch.Tensor, w: torch.Tensor, n: int, **options: Any) -> torch.Tensor:
    """n draws from the first row of h, as n rows with ids of their own."""
    rows = h[:1].expand(n, -1).contiguous()
    return ll.linear_sample(rows, w, seed=11, step=3, row_ids=torch.arange(n), **options).token


def chi_squared(token: torch.Tensor, p: Any) -> float:
    """Standardised chi-squared, near N(0, 1) if tokens come from p.

    Neighbouring tokens are pooled into cells that expect about 20 draws or more.
    """
    n = len(token)
    counts = np.bincount(token.numpy(), minlength=len(p)).astype(float)
    assert counts[p == 0].sum() == 0, "drew a token of probability zero"
    cell = np.floor(np.cumsum(p) * n / 20).astype(int)
    _, cell = np.unique(cell, return_inverse=True)
    expected, observed = np.bincount(cell, p * n), np.bincount(cell, counts)
    dof = len(expected) - 1
    return float((((observed - expected) ** 2 / expected).sum() - dof) / (2 * dof) ** 0.5)


@pytest.mark.parametrize(
    ("vocab", "spread", "options"),
    [
        (7, 1.0, {}),
        (300, 1.0, {"temperature": 0.6}),
        (5000, 0.01, {}),  # flat, three blocks: the choice of the block matters
        (5000, 2.0, {"softcap": 3.0, "logit_scale": 1.5}),
        (6500, 4.0, {"temperature": 1.7}),  # peaked
        (4097, 1.0, {"bias": "half impossible"}),
    ],
)
def test_distribution(vocab: int, spread: float, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    h = torch.randn(1, 4, generator=generator)
    w = torch.randn(vocab, 4, generator=generator) * spread
    if "bias" in options:
        options = {"bias": torch.where(torch.arange(vocab) % 2 == 0, 0.0, -float("inf"))}
    token = draw(h, w, 20_000, **options)
    exact = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    p = reference.probabilities(cases.to_numpy(h) @ cases.to_numpy(w).T, **exact)[0]
    # 4.5 sigma; the draw is a pure function of its arguments, so this passes or fails for good.
    assert abs(chi_squared(token, p)) < 4.5
    # And the statistic notices when half of the mass has 1.3 times its share.
    skewed = p * np.where(np.cumsum(p) < 0.5, 1.3, 1.0)
    assert chi_squared(token, skewed / skewed.sum()) > 4.5


def test_a_draw_belongs_to_its_row_id() -> None:
    h, w = torch.randn(9, 8), torch.randn(5000, 8)
    ids = torch.arange(9) * 1000
    whole = ll.linear_sample(h, w, seed=1, step=2, row_ids=ids)
    order = torch.tensor([4, 0, 8, 2])
    part = ll.linear_sample(h[order], w, seed=1, step=2, row_ids=ids[order])
    assert part.token.tolist() == whole.token[order].tolist()
    for change in ({"seed": 2}, {"step": 3}, {"row_ids": ids + 1}):
        other = ll.linear_sample(h, w, **{"seed": 1, "step": 2, "row_ids": ids, **change})
        assert other.token.tolist() != whole.token.tolist()


def test_threads_do_not_change_the_draw() -> None:
    h, w, ids = torch.randn(9, 8), torch.randn(5000, 8), torch.arange(9)
    whole = ll.linear_sample(h, w, seed=1, step=2, row_ids=ids)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert_bitwise_equal(ll.linear_sample(h, w, seed=1, step=2, row_ids=ids).token, whole.token)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logp_and_entropy_are_those_of_scoring(dtype: torch.dtype) -> None:
    h, w = torch.randn(33, 16).to(dtype), torch.randn(5000, 16).to(dtype)
    temperature = torch.rand(33) + 0.5
    sample = ll.linear_sample(
        h, w, seed=5, step=0, row_ids=torch.arange(33), temperature=temperature
    )
    stats = ll.linear_token_stats(h, w, sample.token, temperature=temperature)
    # The same shapes make the same product, and everything after it is one code.
    assert_bitwise_equal(sample.logp, stats.logp)
    assert_bitwise_equal(sample.entropy, stats.entropy)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": 5}, NotImplementedError, "top_k"),
        ({"top_p": 0.9}, NotImplementedError, "top_p"),
        ({"seed": -1}, ValueError, "seed must be an int >= 0"),
        ({"step": 0.5}, ValueError, "step must be an int >= 0"),
        ({"step": 1 << 50}, ValueError, "step must be below"),
        ({"row_ids": torch.arange(4)}, ValueError, r"row_ids must be \[N\] = \[3\]"),
        ({"row_ids": torch.zeros(3)}, TypeError, "row_ids must be int64"),
        ({"temperature": torch.ones(2)}, ValueError, "temperature must be"),
        ({"bias": torch.ones(2)}, ValueError, r"bias must be \[V\]"),
    ],
)
def test_bad_arguments_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"seed": 0, "step": 0, "row_ids": torch.arange(3), **change}
    with pytest.raises(error, match=message):
        ll.linear_sample(torch.randn(3, 4), torch.randn(10, 4), **arguments)


def test_bad_rows_are_named() -> None:
    h = torch.randn(3, 4)
    h[1] = float("nan")
    with pytest.raises(ValueError, match="row 1: its logits hold a NaN"):
        ll.linear_sample(h, torch.randn(10, 4), seed=0, step=0, row_ids=torch.arange(3))
