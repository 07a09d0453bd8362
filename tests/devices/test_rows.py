"""token_stats through device kernels against the oracle: CUDA, Triton, and their stand-ins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.backends.rows import STATE
from logitless.ops.rows.op import make_rows
from logitless.ops.rows.outputs import empty_outputs
from tests.support import cases
from tests.support.devices import Place
from tests.support.tolerances import (
    GRADIENT_ULP,
    assert_bitwise_equal,
    assert_values,
    dtype_name,
)

VALUES = ("logp", "entropy", "lse")
STATISTICS = ("varentropy", "sum_p2", "entropy_change")
EXTRAS = (*STATISTICS, "argmax")
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
def test_against_the_oracle(place: Place, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, vocab = shape
    z, t = cases.logits(1, n, vocab, dtype), cases.targets(1, n, vocab)
    g = cases.upstream(1, n)
    logits, targets, *there = place.put(z, t, *g)
    logits.requires_grad_()
    stats = ll.token_stats(logits, targets, extras=EXTRAS, backend=place.backend)
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
    place.assert_gradients(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_the_vocabulary_merge(place: Place, dtype: torch.dtype) -> None:
    """What the kernels of two ranks leave of their columns merges, where it lies, to the whole."""
    n, vocab, cut = 7, 5003, 1900
    z, t = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab)
    temperature = cases.chain("row_temperature", 3, n, vocab)["temperature"].double()
    logits, targets, row_scale = place.put(z, t, 1 / temperature)
    rows = make_rows(targets, None, None, row_scale, 1.0, 1.0, 0.0, place.backend)
    pieces = torch.empty(2, n, STATE, dtype=torch.float64, device=logits.device)
    for piece, (start, stop) in zip(pieces, ((0, cut), (cut, vocab)), strict=True):
        own = replace(rows, targets=targets - start)
        own.forward(logits[:, start:stop], piece, extras=True)
        piece[:, 7] += start
    state = torch.empty_like(pieces[0])
    rows.merge(pieces, state)
    out = empty_outputs(n, True, logits)
    rows.finish(state, vocab, **out)
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
def test_rows_as_long_as_real_ones(place: Place, n: int, vocab: int, dtype: torch.dtype) -> None:
    """The device and the CPU's kernels against the oracle; stand-ins take a part of the sizes."""
    if place.device == "cpu":
        n, vocab = min(n, 9), vocab // 16
    z, t = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab)
    g, temperature = cases.upstream(3, n), torch.rand(n) + 0.5
    exact = {"temperature": cases.to_numpy(temperature)}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **exact)
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(), **exact,
    )  # fmt: skip
    for backend, device in ((place.backend, place.device), ("cpu", "cpu")):
        leaf = z.to(device, copy=True).requires_grad_()
        stats = ll.token_stats(
            leaf, t.to(device), temperature=temperature.to(device), backend=backend
        )
        for name in VALUES:
            assert_values(getattr(stats, name), truth[name], dtype)
        loss = weighted(stats, [x.to(device) for x in g])
        place.assert_gradients(torch.autograd.grad(loss, leaf)[0], expected, scale=2)


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chain(place: Place, dtype: torch.dtype, kind: str) -> None:
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

    stats, gradients = run(place.device, place.backend)
    _, plain_gradients = run("cpu", "torch")
    for name in VALUES:
        assert_values(getattr(stats, name), truth[name], dtype)
        assert (getattr(stats, name)[~mask.to(place.device)] == 0).all()
    # As on the CPU: a softcap rounds y and p with it, and the gradient of the bias is a column's
    # sum of up to N rounded gradients.
    for ours, other, right in zip(gradients, plain_gradients, expected, strict=False):
        scale = 1 + 2 * np.abs(cases.to_numpy(other) - right).max() / 1e-6
        if ours.dtype != dtype:
            scale += n * GRADIENT_ULP[dtype_name(dtype)] / 1e-6
        place.assert_gradients(ours, right, scale=scale)


def test_views_without_a_copy(place: Place) -> None:
    """logits[:, :-1, :V] of a padded vocabulary, whose rows are not aligned."""
    whole = torch.randn(3, 6, 2503)
    whole[:, :, 2400:] = float("nan")
    t = torch.randint(0, 2400, (3, 5))
    there, targets = place.put(whole, t)
    part = there[:, :-1, :2400].requires_grad_()
    view = ll.token_stats(part, targets, backend=place.backend)
    flat = ll.token_stats(part.detach().cpu().reshape(15, 2400), t.view(15))
    assert view.logp.shape == (3, 5)
    for a, b in zip(view[:3], flat[:3], strict=True):
        assert_values(a.view(15), b, torch.float32)
    (gradient,) = torch.autograd.grad(view.logp.sum(), part)
    same = part.detach().contiguous().requires_grad_()
    (other,) = torch.autograd.grad(
        ll.token_stats(same, targets, backend=place.backend).logp.sum(), same
    )
    assert_bitwise_equal(gradient, other)


def test_gradient_in_the_memory_of_logits(place: Place) -> None:
    z, t = place.put(cases.logits(7, 10, 3000, torch.float32), cases.targets(7, 10, 3000))
    separate = z.clone().requires_grad_()
    logp = ll.token_stats(separate, t, backend=place.backend).logp
    (expected,) = torch.autograd.grad(logp.sum(), separate)
    owned = z.clone().requires_grad_() * 1.0
    owned.retain_grad()
    logp = ll.token_stats(owned, t, inplace_backward=True, backend=place.backend).logp
    logp.sum().backward()
    assert_bitwise_equal(owned, expected)
    assert_bitwise_equal(owned.grad, expected)


def test_memory_that_others_have_saved_is_not_written_unseen(place: Place) -> None:
    z, t = place.put(cases.logits(7, 10, 3000, torch.float32), cases.targets(7, 10, 3000))
    options = {"inplace_backward": True, "backend": place.backend}
    saved = torch.tanh(z.requires_grad_())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ll.token_stats(saved, t, **options).logp.sum().backward()
    both = z * 1.0
    calls = [ll.token_stats(both, t, **options, temperature=x).logp.sum() for x in (1.0, 2.0)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(calls).backward()
    with pytest.raises(ValueError, match=r"inplace_backward=True.*must not share places"):
        ll.token_stats(z[:1].expand(10, 3000), t, **options)


def test_rows_without_gradient_are_not_read(place: Place) -> None:
    z, t = place.put(cases.logits(8, 6, 2500, torch.bfloat16), cases.targets(8, 6, 2500))
    z.requires_grad_()
    stats = ll.token_stats(z, t, backend=place.backend)
    # Behind the back of autograd: what backward does not read cannot spoil it.
    z.data[::2] = float("nan")
    g = torch.tensor([0.0, 1.0] * 3, device=place.device)
    (gradient,) = torch.autograd.grad((stats.logp * g).sum(), z)
    assert (gradient[::2] == 0).all()
    assert gradient[1::2].isfinite().all()
    assert (gradient[1::2] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_company(place: Place, dtype: torch.dtype) -> None:
    """Twice the same; a row alone or among others; rows aligned to 16 bytes or not."""
    n, vocab = 9, 5003
    z, t = place.put(cases.logits(9, n, vocab, dtype), cases.targets(9, n, vocab))
    padded = torch.zeros(n, vocab + 5, dtype=dtype, device=place.device)
    padded[:, :vocab] = z

    def run(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        leaf = logits.detach().requires_grad_()
        stats = ll.token_stats(leaf, targets, extras=EXTRAS, backend=place.backend)
        (gradient,) = torch.autograd.grad((stats.logp - 0.1 * stats.entropy).sum(), leaf)
        return [*(x.detach() for x in stats[:3]), *stats.extras.values(), gradient]

    whole = run(z, t)
    for again in (run(z, t), run(padded[:, :vocab], t)):
        for a, b in zip(whole, again, strict=True):
            assert_bitwise_equal(a, b)
    for rows in (slice(4, 5), slice(2, 7)):
        for a, b in zip(whole, run(z[rows], t[rows]), strict=True):
            assert_bitwise_equal(a[rows], b)


BAD = [
    ("nan", "row 3: its logits hold a NaN"),
    ("inf", r"row 3: its logits hold a \+inf"),
    ("empty", "row 3: it has no finite logit"),
    ("target", r"row 3: its target is outside \[0, 3000\)"),
    ("temperature", "row 3: its temperature must be finite and > 0"),
]


def bad_call(kind: str, place: Place) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, Any]]:
    """Arguments whose rows 3 and 5 are bad."""
    z, t = torch.randn(6, 3000), torch.zeros(6, dtype=torch.int64)
    temperature = torch.ones(6)
    bad = slice(3, 6, 2)
    if kind == "target":
        t[bad] = 3000
    elif kind == "temperature":
        temperature[bad] = torch.tensor([-1.0, 0.0])
    elif kind == "empty":
        z[bad] = -float("inf")
    else:
        z[bad, 2998] = float(kind)
    logits, targets, temperature = place.put(z, t, temperature)
    return (logits.requires_grad_(), targets), {
        "temperature": temperature, "backend": place.backend
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), BAD, ids=[kind for kind, _ in BAD])
def test_bad_rows_raise_in_the_call_if_asked(
    place: Place, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    arguments, options = bad_call(kind, place)
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(*arguments, **options)
    mask = torch.arange(6, device=place.device) < 3
    assert ll.token_stats(*arguments, mask=mask, **options).logp.isfinite().all()


@pytest.mark.parametrize(("kind", "message"), BAD, ids=[kind for kind, _ in BAD])
def test_bad_rows_are_found_later(place: Place, kind: str, message: str) -> None:
    arguments, options = bad_call(kind, place)
    stats = ll.token_stats(*arguments, extras=("argmax",), **options)
    good = torch.tensor([True, True, True, False, True, False])
    for value in stats[:3]:
        assert value.isnan().tolist() == (~good).tolist()
    assert stats.extras["argmax"][[3, 5]].tolist() == [-1, -1]
    with pytest.raises(RuntimeError, match=f"token_stats: {message}.*LOGITLESS_CHECK=1"):
        stats.logp.sum().backward()
    # Reported once, then forgotten.
    mask = torch.arange(6, device=place.device) < 3
    for _ in range(2):
        assert ll.token_stats(*arguments, mask=mask, **options).logp.isfinite().all()


def test_the_failing_call_is_the_one_named(place: Place) -> None:
    h, w = place.put(torch.randn(4, 8), torch.randn(50, 8))
    h[2] = float("nan")
    t = torch.zeros(4, dtype=torch.int64, device=place.device)
    for _ in range(40):  # more calls than there are copies under way at a time
        ll.token_stats(h[:2] @ w.T, t[:2], backend=place.backend)
    place.wait()
    ll.linear_token_stats(h, w, t, backend=place.backend)
    place.wait()
    with pytest.raises(RuntimeError, match="linear_token_stats: row 2: its logits hold a NaN"):
        ll.token_stats(h @ w.T, t, backend=place.backend)


def test_float64_is_for_plain_torch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.fake:
        pytest.skip("the fake kernels are the CPU's, which take float64")
    z, t = place.put(torch.randn(3, 50, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match=r"float64.*kernels take float32.*'torch'"):
        ll.token_stats(z, t, backend=place.backend)
    monkeypatch.delenv("LOGITLESS_BACKEND", raising=False)
    assert ll.token_stats(z, t).logp.dtype == torch.float64


def test_compiles_without_a_break(place: Place) -> None:
    z, t, temperature = place.put(
        cases.logits(11, 6, 700, torch.float32), cases.targets(11, 6, 700), torch.rand(6) + 0.5
    )

    def loss(z: torch.Tensor) -> torch.Tensor:
        stats = ll.token_stats(z, t, temperature=temperature, backend=place.backend)
        return (stats.logp - 0.1 * stats.entropy).sum()

    torch._dynamo.reset()
    # Inductor has nothing to fuse here; on a CPU it would only call a compiler.
    compiler = "inductor" if place.device != "cpu" else "aot_eager"
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    results = []
    for f in (loss, compiled):
        leaf = z.clone().requires_grad_()
        value = f(leaf)
        value.backward()
        results.append((value, leaf.grad))
    assert_values(results[1][0].view(1), results[0][0].detach().view(1), torch.float32)
    assert_bitwise_equal(results[1][1], results[0][1])


def test_op_registration(place: Place) -> None:
    """Schema, fake kernel and autograd registration agree, by torch's own checker."""
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.rows.op import row_stats

    h, w = place.put(torch.randn(4, 8), torch.randn(50, 8))
    t = torch.zeros(4, dtype=torch.int64, device=place.device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    chain = (None, None, None, 1.0, 1.0, 0.0, place.backend)
    z = (h @ w.t()).requires_grad_()
    torch.library.opcheck(row_stats, (z, t, *chain, True, False), test_utils=tests)
    h.requires_grad_()
    torch.library.opcheck(
        linear_stats, (h, w, t, *chain, True, 4, 50, 0, torch.float32, False), test_utils=tests
    )
