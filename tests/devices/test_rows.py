"""token_stats through device kernels against the oracle: CUDA, Triton, and their stand-ins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.backends.row_kernels.rows import STATE
from logitless.ops.rows.arguments import RowArguments
from logitless.ops.rows.outputs import empty_outputs, requested
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.row_outputs import EXTRAS, STATISTICS, VALUES
from tests.support.tolerances import (
    GRADIENT_ULP,
    assert_bitwise_equal,
    assert_values,
    dtype_name,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = (
    *cases.ROW_SHAPES,
    (2, 4096),  # exactly one piece of 16-bit logits, two of 32-bit ones
    (3, 8195),  # pieces, then a ragged one of 3 columns; rows not aligned to 16 bytes
)


def weighted(stats: ll.TokenStats, g: Any) -> torch.Tensor:
    return (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"N{s[0]}-V{s[1]}")
def test_against_the_oracle(device: Device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, vocab = shape
    z, t = cases.logits(1, n, vocab, dtype), cases.targets(1, n, vocab)
    g = cases.upstream(1, n)
    logits, targets, *there = device.put(z, t, *g)
    logits.requires_grad_()
    stats = ll.token_stats(logits, targets, extras=EXTRAS, backend=device.backend)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy())
    for name in VALUES:
        assert getattr(stats, name).device == logits.device
        assert_values(getattr(stats, name), truth[name], dtype)
    for name in STATISTICS:
        # Each is a difference of sums of squares of at most (log V)^2.
        assert_values(stats.extras[name] / 30, truth[name] / 30, dtype)
    assert stats.extras["argmax"].tolist() == truth["argmax"].tolist()
    assert (stats.logp <= 0).all()
    (gradient,) = torch.autograd.grad(weighted(stats, there), logits)
    assert gradient.dtype == dtype
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(),
    )  # fmt: skip
    device.assert_gradients(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_the_vocabulary_merge(device: Device, dtype: torch.dtype) -> None:
    """What the kernels of two ranks leave of their columns merges, where it lies, to the whole."""
    n, vocab, cut = 7, 5003, 1900
    z, t = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab)
    temperature = cases.chain("row_temperature", 3, n, vocab)["temperature"].double()
    logits, targets, row_scale = device.put(z, t, 1 / temperature)
    rows = RowArguments(targets, None, None, row_scale, 1.0, 1.0, 0.0, device.backend).rows(
        "token_stats"
    )
    pieces = torch.empty(2, n, STATE, dtype=torch.float64, device=logits.device)
    for piece, (start, stop) in zip(pieces, ((0, cut), (cut, vocab)), strict=True):
        own = replace(rows, targets=targets - start)
        own.forward(logits[:, start:stop], piece, extras=True)
        piece[:, 7] += start
    state = torch.empty_like(pieces[0])
    rows.merge(pieces, state)
    out = requested(empty_outputs(n, True, logits), True)
    rows.finalize(state, vocab, **out)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), temperature=temperature.numpy())
    for name in VALUES:
        assert_values(out[name], truth[name], dtype)
    for name in STATISTICS:
        assert_values(out[name] / 30, truth[name] / 30, dtype)
    assert out["argmax"].tolist() == truth["argmax"].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "vocab"), [(1, 262_144), (7, 151_936), (130, 128_257), (1000, 32_000)]
)
def test_rows_as_long_as_real_ones(device: Device, n: int, vocab: int, dtype: torch.dtype) -> None:
    """The device and the CPU's kernels against the oracle; stand-ins take a part of the sizes."""
    if device.name == "cpu":
        n, vocab = min(n, 9), vocab // 16
    z, t = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab)
    g, temperature = cases.upstream(3, n), torch.rand(n) + 0.5
    exact = {"temperature": cases.to_numpy(temperature)}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **exact)
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(), **exact,
    )  # fmt: skip
    for backend, where in ((device.backend, device.name), ("cpu", "cpu")):
        leaf = z.to(where, copy=True).requires_grad_()
        stats = ll.token_stats(
            leaf, t.to(where), temperature=temperature.to(where), backend=backend
        )
        for name in VALUES:
            assert_values(getattr(stats, name), truth[name], dtype)
        loss = weighted(stats, [x.to(where) for x in g])
        device.assert_gradients(torch.autograd.grad(loss, leaf)[0], expected, scale=2)


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chain(device: Device, dtype: torch.dtype, kind: str) -> None:
    n, vocab = 12, 2100
    z, t = cases.logits(2, n, vocab, dtype), cases.targets(2, n, vocab)
    g, mask = cases.upstream(2, n), cases.mask(2, n)
    # What is outside the mask is never read.
    z[~mask] = float("nan")
    t[~mask] = -7
    options = cases.chain(kind, 2, n, vocab)
    exact = {"mask": mask.numpy(), **cases.numpy_chain(options)}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **exact)
    expected = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(), **exact,
    )  # fmt: skip

    def run(device: str, backend: str) -> tuple[ll.TokenStats, tuple[torch.Tensor, ...]]:
        there = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
        leaves = [z.to(device, copy=True).requires_grad_()]
        if "bias" in there:
            there["bias"] = there["bias"].clone().requires_grad_()
            leaves.append(there["bias"])
        stats = ll.token_stats(
            leaves[0], t.to(device), mask=mask.to(device), backend=backend, **there
        )
        return stats, torch.autograd.grad(weighted(stats, [x.to(device) for x in g]), leaves)

    stats, gradients = run(device.name, device.backend)
    _, plain_gradients = run("cpu", "torch")
    for name in VALUES:
        assert_values(getattr(stats, name), truth[name], dtype)
        assert (getattr(stats, name)[~mask.to(device.name)] == 0).all()
    # As on the CPU: a softcap rounds y and p with it, and the gradient of the bias is a column's
    # sum of up to N rounded gradients.
    for ours, other, right in zip(gradients, plain_gradients, expected, strict=False):
        scale = 1 + 2 * np.abs(cases.to_numpy(other) - right).max() / 1e-6
        if ours.dtype != dtype:
            scale += n * GRADIENT_ULP[dtype_name(dtype)] / 1e-6
        device.assert_gradients(ours, right, scale=scale)


def test_views_without_a_copy(device: Device) -> None:
    """logits[:, :-1, :V] of a padded vocabulary, whose rows are not aligned."""
    whole = torch.randn(3, 6, 2503)
    whole[:, :, 2400:] = float("nan")
    t = torch.randint(0, 2400, (3, 5))
    there, targets = device.put(whole, t)
    part = there[:, :-1, :2400].requires_grad_()
    view = ll.token_stats(part, targets, backend=device.backend)
    flat = ll.token_stats(part.detach().cpu().reshape(15, 2400), t.view(15))
    assert view.logp.shape == (3, 5)
    for a, b in zip(view[:3], flat[:3], strict=True):
        assert_values(a.view(15), b, torch.float32)
    (gradient,) = torch.autograd.grad(view.logp.sum(), part)
    same = part.detach().contiguous().requires_grad_()
    (other,) = torch.autograd.grad(
        ll.token_stats(same, targets, backend=device.backend).logp.sum(), same
    )
    assert_bitwise_equal(gradient, other)


def test_gradient_in_the_memory_of_logits(device: Device) -> None:
    z, t = device.put(cases.logits(7, 10, 3000, torch.float32), cases.targets(7, 10, 3000))
    separate = z.clone().requires_grad_()
    logp = ll.token_stats(separate, t, backend=device.backend).logp
    (expected,) = torch.autograd.grad(logp.sum(), separate)
    owned = z.clone().requires_grad_() * 1.0
    owned.retain_grad()
    logp = ll.token_stats(owned, t, inplace_backward=True, backend=device.backend).logp
    logp.sum().backward()
    assert_bitwise_equal(owned, expected)
    assert_bitwise_equal(owned.grad, expected)


def test_rows_without_gradient_are_not_read(device: Device) -> None:
    z, t = device.put(cases.logits(8, 6, 2500, torch.bfloat16), cases.targets(8, 6, 2500))
    z.requires_grad_()
    stats = ll.token_stats(z, t, backend=device.backend)
    # Behind the back of autograd: what backward does not read cannot spoil it.
    z.data[::2] = float("nan")
    g = torch.tensor([0.0, 1.0] * 3, device=device.name)
    (gradient,) = torch.autograd.grad((stats.logp * g).sum(), z)
    assert (gradient[::2] == 0).all()
    assert gradient[1::2].isfinite().all()
    assert (gradient[1::2] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_company(device: Device, dtype: torch.dtype) -> None:
    """Twice the same; a row alone or among others; rows aligned to 16 bytes or not."""
    n, vocab = 9, 5003
    z, t = device.put(cases.logits(9, n, vocab, dtype), cases.targets(9, n, vocab))
    padded = torch.zeros(n, vocab + 5, dtype=dtype, device=device.name)
    padded[:, :vocab] = z

    def run(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        leaf = logits.detach().requires_grad_()
        stats = ll.token_stats(leaf, targets, extras=EXTRAS, backend=device.backend)
        (gradient,) = torch.autograd.grad((stats.logp - 0.1 * stats.entropy).sum(), leaf)
        return [*(x.detach() for x in stats[:3]), *stats.extras.values(), gradient]

    whole = run(z, t)
    for again in (run(z, t), run(padded[:, :vocab], t)):
        for a, b in zip(whole, again, strict=True):
            assert_bitwise_equal(a, b)
    for rows in (slice(4, 5), slice(2, 7)):
        for a, b in zip(whole, run(z[rows], t[rows]), strict=True):
            assert_bitwise_equal(a[rows], b)


def test_float64_is_for_plain_torch(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = device.put(torch.randn(3, 50, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match=r"float64.*kernels take float32.*'torch'"):
        ll.token_stats(z, t, backend=device.backend)
    monkeypatch.delenv("LOGITLESS_BACKEND", raising=False)
    assert ll.token_stats(z, t).logp.dtype == torch.float64
