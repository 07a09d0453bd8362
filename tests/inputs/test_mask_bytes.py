"""A mask seen through other bytes than 0 and 1 is the mask that these are true or false in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import logitless as ll
from logitless.backends.token_kernels.arrays import MANY, truths

RNG = np.random.default_rng(0)


def masks(shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same truths as bytes of 0 and 1, and as any bytes."""
    true = RNG.random(shape) < 0.7
    held = np.where(true, RNG.integers(1, 256, size=shape), 0).astype(np.uint8)
    return true, held.view(np.bool_)


@pytest.mark.parametrize("n", [0, 1, 5, MANY, MANY + 1, 3 * MANY])
def test_bytes_become_truths(n: int) -> None:
    plain, odd = masks(n)
    for mask in (plain, odd, odd[::-1][::-1]):
        assert np.array_equal(truths(mask).view(np.uint8), plain.view(np.uint8))
    if n > MANY:
        assert truths(plain) is plain


def kinds() -> list[Any]:
    try:
        import torch
    except ImportError:
        return [np.asarray]
    return [np.asarray, torch.from_numpy]


@pytest.mark.parametrize("n", [37, 5000])
@pytest.mark.parametrize("kind", kinds(), ids=["numpy", "torch"][: len(kinds())])
def test_losses_and_statistics(n: int, kind: Any) -> None:
    plain, odd = masks(n)
    logp, old, a = (-RNG.random(n), -RNG.random(n), RNG.normal(size=n))
    x = {"logp": kind(logp), "old": kind(old), "a": kind(a), "entropy": kind(RNG.random(n))}
    ids = kind(RNG.permutation(n))
    for name in ("kl_cov", "clip_cov", "top_entropy", "clip_b", "ppo", "tea"):
        spec = ll.presets[name]
        found = []
        for mask in (kind(plain), kind(odd)):
            batch = ll.batch_stats(
                x["logp"], x["a"], mask, spec, old_logp=x["old"], entropy=x["entropy"],
                token_ids=ids, seed=0, step=0,
                cu_seqlens=kind(np.array([0, n // 2, n], np.int32)),
            )  # fmt: skip
            loss = ll.policy_loss(
                x["logp"], x["old"], x["a"], mask, spec, entropy=x["entropy"], token_ids=ids,
                batch=batch, cu_seqlens=kind(np.array([0, n // 2, n], np.int32)),
            )  # fmt: skip
            selected = np.asarray(batch.selected).tolist()
            counts = (batch.count, batch.totals, batch.mean_advantage, batch.mean_logp)
            found.append((selected, counts, float(loss.loss), str(loss.metrics)))
        assert found[0] == found[1], name
        assert found[0][1][0] == plain.sum()


@pytest.mark.parametrize("kind", kinds(), ids=["numpy", "torch"][: len(kinds())])
def test_covariance_and_rollout_weights(kind: Any) -> None:
    plain, odd = masks(50)
    logp, other, a = (kind(x) for x in (-RNG.random(50), -RNG.random(50), RNG.normal(size=50)))
    one, two = (ll.covariance(logp, a, kind(mask)) for mask in (plain, odd))
    assert one == two and one.count == plain.sum()
    for name in ("tis", "icepop"):
        here, there = (
            ll.rollout_weights(logp, other, kind(mask), ll.corrections[name])
            for mask in (plain, odd)
        )
        assert np.array_equal(np.asarray(here.weights), np.asarray(there.weights))
        assert np.array_equal(np.asarray(here.keep), np.asarray(there.keep))
        assert here.metrics == there.metrics


@pytest.mark.parametrize("backend", ["cpu", "torch", "numpy"])
@pytest.mark.parametrize("linear", [False, True], ids=["rows", "head"])
def test_rows(backend: str, linear: bool) -> None:
    torch = pytest.importorskip("torch")
    plain, odd = masks(24)
    hidden, weight = RNG.normal(size=(24, 8)), RNG.normal(size=(40, 8))
    found = []
    for mask in (plain, odd):
        arrays = [hidden, weight] if linear else [hidden @ weight.T]
        given: list[Any] = [*arrays, np.arange(24), mask]
        if backend != "numpy":
            given = [torch.from_numpy(x) for x in given]
            given[0].requires_grad_()
        op = ll.linear_token_stats if linear else ll.token_stats
        temperature = torch.ones(24) if backend != "numpy" else np.ones(24)
        stats = op(
            *given[:-1], mask=given[-1], temperature=temperature,
            backend="auto" if backend == "numpy" else backend, extras=("argmax",),
        )  # fmt: skip
        values = [stats.logp, stats.entropy, stats.extras["argmax"]]
        if backend != "numpy":
            (stats.logp.sum() + stats.entropy.sum()).backward()
            values.append(given[0].grad)
        found.append([np.asarray(v.detach() if hasattr(v, "detach") else v) for v in values])
    for one, two in zip(*found, strict=True):
        assert np.array_equal(one, two)


def test_the_loss_of_a_head() -> None:
    torch = pytest.importorskip("torch")
    plain, odd = masks(24)
    results = []
    for mask in (plain, odd):
        torch.manual_seed(0)
        hidden, weight = torch.randn(24, 8, requires_grad=True), torch.randn(40, 8)
        out = ll.linear_policy_loss(
            hidden, weight, torch.arange(24), torch.full((24,), -3.0), torch.linspace(-1, 1, 24),
            torch.from_numpy(mask), ll.presets["kl_cov"],
        )  # fmt: skip
        out.loss.backward()
        results.append((out.loss, out.logp, out.entropy, hidden.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
