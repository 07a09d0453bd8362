"""linear_sample draws from softmax(z): chi-squared, determinism, agreement with scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from tests.support import cases
from tests.support.draws import chi_squared, draw, total_variation
from tests.support.tolerances import assert_bitwise_equal


@pytest.mark.parametrize(
    ("vocab", "spread", "options"),
    [
        (7, 1.0, {}),
        (300, 1.0, {"temperature": 0.6}),
        (5000, 0.01, {}),  # flat, three blocks: the choice of the block matters
        (5000, 2.0, {"softcap": 3.0, "logit_scale": 1.5}),
        (6500, 4.0, {"temperature": 1.7}),  # peaked
        (4097, 1.0, {"bias": "half impossible"}),
        (2500, 1.0, {"temperature": "per row"}),
        (40_000, 3.0, {"temperature": 0.8}),  # many blocks
    ],
)
def test_distribution(vocab: int, spread: float, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    h = torch.randn(1, 4, generator=generator)
    w = torch.randn(vocab, 4, generator=generator) * spread
    if "bias" in options:
        options = {"bias": torch.where(torch.arange(vocab) % 2 == 0, 0.0, -float("inf"))}
    asked = dict(options)
    if options.get("temperature") == "per row":
        asked["temperature"], options = torch.full((20_000,), 0.7), {"temperature": 0.7}
    token = draw(h, w, 20_000, **asked)
    exact = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    p = reference.probabilities(cases.to_numpy(h) @ cases.to_numpy(w).T, **exact)[0]
    # 4.5 sigma; the draw is a pure function of its arguments, so this passes or fails for good.
    assert abs(chi_squared(token, p)) < 4.5
    assert total_variation(token, p) < 4.5
    # And both notice when half of the mass has too large a share: pooled cells sooner than tokens.
    for statistic, factor in ((chi_squared, 1.3), (total_variation, 3.0)):
        skewed = p * np.where(np.cumsum(p) < 0.5, factor, 1.0)
        assert statistic(token, skewed / skewed.sum()) > 4.5


def test_rows_of_one_call_have_temperatures_of_their_own() -> None:
    w, h = torch.randn(3000, 4), torch.randn(1, 4)
    n, cold, hot = 20_000, 0.3, 1.5
    temperature = torch.tensor([cold, hot]).repeat(n)
    token = draw(h, w, 2 * n, temperature=temperature)
    z = cases.to_numpy(h) @ cases.to_numpy(w).T
    for start, value in enumerate((cold, hot)):
        p = reference.probabilities(z, temperature=value)[0]
        assert abs(chi_squared(token[start::2], p)) < 4.5


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


TRUNCATIONS: list[dict[str, Any]] = [{}, {"top_k": 20}, {"top_p": 0.9}]


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logp_and_entropy_are_those_of_scoring(
    dtype: torch.dtype, truncation: dict[str, Any]
) -> None:
    """Bit for bit, though scored in another batch: shuffled, with others between."""
    h, w = torch.randn(33, 64).to(dtype), torch.randn(5000, 64).to(dtype) / 8
    options: dict[str, Any] = {"temperature": torch.rand(33) + 0.5, "batch_invariant": True}
    ids = torch.arange(33)
    sample = ll.linear_sample(h, w, seed=5, step=0, row_ids=ids, **options, **truncation)
    order = torch.randperm(33)
    options["temperature"] = options["temperature"][order].repeat(2)
    stats = ll.linear_token_stats(
        h[order].repeat(2, 1), w, sample.token[order].repeat(2), **options
    )
    for part in (slice(33), slice(33, 66)):
        assert_bitwise_equal(sample.logp[order], stats.logp[part])
        assert_bitwise_equal(sample.entropy[order], stats.entropy[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_batch_invariant_scoring_differs_by_roundings(dtype: torch.dtype) -> None:
    h, w = torch.randn(33, 256).to(dtype), torch.randn(5000, 256).to(dtype) / 16
    sample = ll.linear_sample(h, w, seed=5, step=0, row_ids=torch.arange(33))
    stats = ll.linear_token_stats(h.repeat(40, 1), w, sample.token.repeat(40))
    # One ulp of the target's logit, which is below 8, and the mean of such in the entropy.
    allowed = {torch.float32: 1e-5, torch.bfloat16: 8 * 2**-8}[dtype]
    torch.testing.assert_close(stats.logp[:33], sample.logp, atol=allowed, rtol=0)
    torch.testing.assert_close(stats.entropy[:33], sample.entropy, atol=allowed, rtol=0)


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_invariant_draws(dtype: torch.dtype, truncation: dict[str, Any]) -> None:
    """A row drawn alone, or after others, is the row drawn among all, in every result."""
    h, w = torch.randn(300, 64).to(dtype), torch.randn(6000, 64).to(dtype) / 8
    ids = torch.arange(300) * 7
    arguments = {"seed": 1, "step": 2, "batch_invariant": True, **truncation}
    whole = ll.linear_sample(h, w, row_ids=ids, **arguments)
    for index in (torch.tensor([299]), torch.tensor([5, 0, 270, 5]), torch.arange(290)):
        part = ll.linear_sample(h[index], w, row_ids=ids[index], **arguments)
        for found, expected in zip(part, whole, strict=True):
            assert_bitwise_equal(found, expected[index])
    small = ll.linear_sample(h, w, row_ids=ids, memory_budget="8MiB", **arguments)
    for found, expected in zip(small, whole, strict=True):
        assert_bitwise_equal(found, expected)


def test_logits_dtype_makes_the_logits_of_16_bits_in_float32() -> None:
    h, w = (3 * torch.randn(9, 64)).bfloat16(), (torch.randn(5000, 64) / 8).bfloat16()
    sample = ll.linear_sample(
        h, w, seed=5, step=0, row_ids=torch.arange(9), logits_dtype=torch.float32
    )
    exact = reference.linear_token_stats(cases.to_numpy(h), cases.to_numpy(w), sample.token.numpy())
    np.testing.assert_allclose(sample.logp.numpy(), exact["logp"], atol=2e-5)


def test_a_small_budget_gives_the_same_and_too_small_a_one_is_named() -> None:
    h, w = torch.randn(64, 32), torch.randn(9000, 32)
    arguments = {"seed": 1, "step": 2, "row_ids": torch.arange(64)}
    whole = ll.linear_sample(h, w, **arguments)
    small = ll.linear_sample(h, w, **arguments, memory_budget="1MiB")
    assert small.token.tolist() == whole.token.tolist()
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        ll.linear_sample(h, w, **arguments, memory_budget=1000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k must be an int >= 1"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, ValueError, r"top_p must be in \(0, 1\]"),
        ({"top_p": "0.9"}, TypeError, "top_p must be a number"),
        ({"logits_dtype": torch.float16}, ValueError, "logits_dtype must be"),
        ({"seed": -1}, ValueError, "seed must be an int >= 0"),
        ({"step": 0.5}, TypeError, "step must be an int"),
        ({"step": 1 << 50}, ValueError, "step must be an int >= 0 and below"),
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


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_bad_rows_are_named(truncation: dict[str, Any]) -> None:
    h = torch.randn(3, 4)
    arguments = {"seed": 0, "step": 0, "row_ids": torch.arange(3), **truncation}
    nothing = torch.full((30,), -float("inf"))
    with pytest.raises(ValueError, match="row 0: it has no finite logit"):
        ll.linear_sample(h, torch.randn(30, 4), bias=nothing, **arguments)
    h[1] = float("nan")
    with pytest.raises(ValueError, match="row 1: its logits hold a NaN"):
        ll.linear_sample(h, torch.randn(30, 4), **arguments)
