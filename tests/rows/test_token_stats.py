"""token_stats against the oracle: every dtype, instruction set, option and extreme."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import _core, reference
from logitless.inputs.options import ROW_EXTRAS
from tests.support import cases
from tests.support.row_outputs import EXTRAS, REALS, STATISTICS
from tests.support.tolerances import (
    GRADIENT_ULP,
    assert_bitwise_equal,
    assert_gradients,
    assert_values,
    dtype_name,
)

ISAS = _core.runtime.build_info()["isas"]


def test_every_extra_has_its_oracle_and_its_tests() -> None:
    truth = reference.token_stats(np.zeros((1, 3)), np.zeros(1, np.int64))
    assert set(truth) == {*REALS, "argmax"}
    assert ROW_EXTRAS == EXTRAS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LOGITLESS_ISA", request.param)
    assert _core.runtime.build_info()["isa"] == request.param
    return str(request.param)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", cases.ROW_SHAPES, ids=lambda s: f"N{s[0]}-V{s[1]}")
def test_forward_and_backward(isa: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, vocab = shape
    z = cases.logits(1, n, vocab, dtype).requires_grad_()
    t, g = cases.targets(1, n, vocab), cases.upstream(1, n)
    stats = ll.token_stats(z, t, extras=EXTRAS)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy())
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name), truth[name], dtype)
    for name in STATISTICS:
        # Each is a difference of sums of squares of at most (log V)^2.
        assert_values(stats.extras[name] / 30, truth[name] / 30, dtype)
    assert stats.extras["argmax"].tolist() == truth["argmax"].tolist()
    if n == 0:
        return
    (gradient,) = torch.autograd.grad(
        (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum(), z
    )
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(),
    )  # fmt: skip
    assert gradient.dtype == dtype
    # The smallest half is 6e-8: gradients below it are rounded to multiples of it.
    assert_gradients(gradient, expected, dtype)


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_chain(isa: str, dtype: torch.dtype, kind: str) -> None:
    n, vocab = 12, 2100
    z = cases.logits(2, n, vocab, dtype).requires_grad_()
    t, g, mask = cases.targets(2, n, vocab), cases.upstream(2, n), cases.mask(2, n)
    options = cases.chain(kind, 2, n, vocab)
    leaves = [z]
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
        leaves.append(options["bias"])
    stats = ll.token_stats(z, t, mask=mask, **options)
    exact = {
        "mask": mask.numpy(),
        **cases.numpy_chain(
            {k: v.detach() if torch.is_tensor(v) else v for k, v in options.items()}
        ),
    }
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **exact)
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name), truth[name], dtype)
        assert (getattr(stats, name)[~mask] == 0).all()
    plain = ll.token_stats(z, t, mask=mask, backend="torch", **options)
    gradients, plain_gradients = (
        torch.autograd.grad((x.logp * g[0] + x.entropy * g[1] + x.lse * g[2]).sum(), leaves)
        for x in (stats, plain)
    )
    expected = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(),
        g_lse=g[2].numpy(), **exact,
    )  # fmt: skip
    # A softcap rounds y, and p with it, in plain code as here. The gradient of the bias is a
    # column's sum of gradients as stored, up to N roundings.
    for ours, other, right in zip(gradients, plain_gradients, expected, strict=False):
        scale = 1 + 2 * np.abs(cases.to_numpy(other) - right).max() / 1e-6
        if ours.dtype != dtype:
            scale += n * GRADIENT_ULP[dtype_name(dtype)] / 1e-6
        assert_gradients(ours, right, ours.dtype, scale=scale if dtype != torch.float64 else n)


def test_gradcheck() -> None:
    z = cases.logits(3, 4, 9, torch.float64).clamp(-3, 3).requires_grad_()
    t, bias = cases.targets(3, 4, 9), torch.randn(9, dtype=torch.float64, requires_grad=True)

    def values(z: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.stack(ll.token_stats(z, t, bias=bias, softcap=4.0, temperature=0.8)[:3])

    assert torch.autograd.gradcheck(values, (z, bias))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_shifted_and_padded_views(backend: str) -> None:
    """logits[:, :-1, :V] of a padded vocabulary: strides of its own in every dimension, no copy."""
    whole = torch.randn(3, 6, 2500)
    whole[:, :, 2400:] = float("nan")
    part = whole[:, :-1, :2400].requires_grad_()
    t = torch.randint(0, 2400, (3, 5))
    bias = torch.randn(2400, requires_grad=True)
    view = ll.token_stats(part, t, bias=bias, backend=backend)
    flat = ll.token_stats(part.reshape(15, 2400), t.view(15), bias=bias)
    leaves = (part, bias)
    for a, b in zip(view[:3], flat[:3], strict=True):
        assert_values(a.view(15), b.detach(), torch.float32)
    for a, b in zip(
        torch.autograd.grad(view.logp.sum(), leaves),
        torch.autograd.grad(flat.logp.sum(), leaves),
        strict=True,
    ):
        assert_gradients(a, b, torch.float32, scale=15)
    numpy = ll.token_stats(part.detach().numpy(), t.numpy(), bias=bias.detach().numpy())
    assert_values(numpy.logp, view.logp.detach(), torch.float32)


def test_a_quarter_million_terms() -> None:
    """Flat rows, where every term counts: errors of 250,000 additions would show."""
    vocab = 250_000
    generator = torch.Generator().manual_seed(9)
    z = torch.rand(4, vocab, generator=generator) * torch.tensor([[1e-3], [1.0], [5.0], [100.0]])
    t = torch.randint(0, vocab, (4,), generator=generator)
    stats = ll.token_stats(z, t, extras=EXTRAS)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy())
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name), truth[name], torch.float32)


@pytest.mark.parametrize("magnitude", [100.0, 1e4])
def test_large_logits(magnitude: float) -> None:
    """Backward uses m and log s0, not lse: exp(z - lse) would be off by 5e-4 at 1e4."""
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(8, 3000, generator=generator) + magnitude
    z = z.requires_grad_()
    t = cases.targets(6, 8, 3000)
    stats = ll.token_stats(z, t)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy())
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name), truth[name], torch.float32)
    (gradient,) = torch.autograd.grad(stats.logp.sum() + stats.entropy.sum(), z)
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=1.0, g_entropy=1.0
    )
    assert_gradients(gradient, expected, torch.float32)


def test_impossible_target() -> None:
    z = torch.tensor([[0.0, -float("inf"), 1.0]], requires_grad=True)
    stats = ll.token_stats(z, torch.tensor([1]))
    assert stats.logp.item() == -float("inf")
    assert stats.entropy.item() == pytest.approx(0.5822, abs=1e-4)
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), z, retain_graph=True)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(stats.logp.sum(), z)
    (expected,) = torch.autograd.grad(z.log_softmax(-1)[0, 1], z)
    assert_gradients(gradient, expected.numpy(), torch.float32)


def test_inplace_backward_uses_the_memory_of_logits() -> None:
    z, t = cases.logits(7, 10, 3000, torch.float32), cases.targets(7, 10, 3000)
    separate = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ll.token_stats(separate, t).logp.sum(), separate)
    source = z.clone().requires_grad_()
    owned = source * 1.0
    ll.token_stats(owned, t, inplace_backward=True).logp.sum().backward()
    assert_bitwise_equal(source.grad, expected)
    assert_bitwise_equal(owned, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy_needs_no_torch_tensor(dtype: type) -> None:
    z = cases.logits(8, 6, 2500, torch.float32).numpy().astype(dtype).reshape(2, 3, 2500)
    t = cases.targets(8, 6, 2500).numpy().reshape(2, 3)
    z.flags.writeable = False
    stats = ll.token_stats(z, t, extras=EXTRAS, temperature=np.full((2, 3), 1.3))
    truth = reference.token_stats(z, t, temperature=1.3)
    assert isinstance(stats.logp, np.ndarray)
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name), truth[name], dtype)
    assert (stats.extras["argmax"] == truth["argmax"]).all()


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    shift=st.floats(-1e3, 1e3),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_properties(vocab: int, seed: int, shift: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 2^-10 add to the shift without rounding.
    z = (torch.randn(4, vocab, generator=generator) * spread * 1024).round() / 1024
    t = torch.randint(0, vocab, (4,), generator=generator)
    shift = round(shift)
    leaf = z.clone().requires_grad_()
    stats = ll.token_stats(leaf, t)
    assert (stats.logp <= 0).all()
    assert (stats.entropy >= 0).all()
    assert (stats.entropy <= math.log(vocab) + 1e-6).all()
    (gradient,) = torch.autograd.grad(stats.logp.sum() - 0.3 * stats.entropy.sum(), leaf)
    assert gradient.sum(-1).abs().max() <= 2e-6 * max(1.0, float(stats.entropy.detach().max()))
    shifted = ll.token_stats(z + shift, t)
    assert_values(shifted.logp, stats.logp, torch.float32)
    assert_values(shifted.entropy, stats.entropy, torch.float32)
    order = torch.randperm(vocab, generator=generator)
    permuted = ll.token_stats(z[:, order], order.argsort()[t])
    assert_values(permuted.logp, stats.logp, torch.float32)
    assert_values(permuted.entropy, stats.entropy, torch.float32)


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (float("nan"), "row 3: its logits hold a NaN"),
        (float("inf"), r"row 3: its logits hold a \+inf"),
    ],
)
@pytest.mark.parametrize("column", [0, 2047, 2048, 2999])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_bad_rows_are_named(poison: float, message: str, column: int, backend: str) -> None:
    z, t = torch.randn(6, 3000), torch.zeros(6, dtype=torch.int64)
    z[3:, column] = poison
    with pytest.raises(ValueError, match=message):
        ll.token_stats(z, t, backend=backend)
    mask = torch.arange(6) < 3
    assert ll.token_stats(z, t, mask=mask, backend=backend).logp.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rows_without_meaning(backend: str) -> None:
    z = torch.randn(3, 50)
    z[1] = -float("inf")
    t = torch.tensor([0, 1, 50])
    with pytest.raises(ValueError, match="row 1: it has no finite logit"):
        ll.token_stats(z, t, backend=backend)
    with pytest.raises(ValueError, match=r"row 2: .*target.* is outside \[0, 50\)"):
        ll.token_stats(z, t, mask=torch.tensor([True, False, True]), backend=backend)
    one_nan = torch.full((1, 5), -float("inf"))
    one_nan[0, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        ll.token_stats(one_nan, torch.tensor([0]), backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": torch.zeros(3)}, TypeError, "targets must be int64 or int32"),
        (
            {"targets": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            r"logits must be \[\*targets.shape, V\]",
        ),
        ({"mask": torch.ones(3)}, TypeError, "mask must be bool"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, ValueError, "mask must be targets.shape"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0"),
        ({"temperature": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "temperature must be"),
        ({"temperature": np.ones(3)}, TypeError, "arrays must be all torch or all NumPy"),
        ({"softcap": -3.0}, ValueError, "softcap must be finite and > 0"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[V\] = \[5\]"),
        ({"extras": ("entropie",)}, ValueError, "unknown name 'entropie'"),
        ({"extras": "argmax"}, TypeError, "extras must be a tuple"),
        ({"extras": ("dropped_mass",)}, ValueError, "dropped_mass"),
        ({"vocab_group": object()}, TypeError, "vocab_group must be a torch.distributed process"),
        ({"backend": "gpu"}, ValueError, "backend must be one of"),
        ({"backend": "triton"}, NotImplementedError, "triton"),
        ({"logits": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "logits must be float32 or"),
        ({"logits": [[0.0]]}, TypeError, "logits must be a torch tensor or a NumPy array"),
    ],
)
def test_bad_arguments_are_named(change: dict, error: type[Exception], message: str) -> None:  # type: ignore[type-arg]
    arguments = {"logits": torch.randn(3, 5), "targets": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(error, match=message):
        ll.token_stats(arguments.pop("logits"), arguments.pop("targets"), **arguments)


def test_differentiating_twice_is_refused() -> None:
    z = torch.randn(2, 5, requires_grad=True)
    logp = ll.token_stats(z * 1, torch.tensor([0, 1]), inplace_backward=True).logp.sum()
    logp.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        logp.backward()
    logp = ll.token_stats(z, torch.tensor([0, 1])).logp.sum()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(logp, z, create_graph=True)
