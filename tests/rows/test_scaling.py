"""Options at the ends of float32: exact, or refused by name; never NaN, never wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import _core
from tests.support import scaling_cases as cases

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ISAS = _core.runtime.build_info()["isas"]
# float16 holds logits from 6e-8 to 65504, and its gradients as well.
NARROW = (
    "tiny softcap", "tiny softcap and temperature", "uniform", "scale cancels temperature",
    "all of it tiny", "all of it large", "both tiny", "temperatures and a softcap",
)  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.EXACT)
def test_exact(name: str, dtype: torch.dtype, backend: str) -> None:
    if dtype == torch.float16 and name not in NARROW:
        pytest.skip("float16 has no such logits or gradients")
    check_exact(name, dtype, backend)


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("name", cases.EXACT)
def test_exact_on_every_instruction_set(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITLESS_ISA", isa)
    check_exact(name, torch.float32, "cpu")


def check_exact(name: str, dtype: torch.dtype, backend: str) -> None:
    case = cases.EXACT[name]
    z, t, *g = cases.problem(case, dtype)
    leaf = z.clone().requires_grad_()
    stats = ll.token_stats(leaf, t, backend=backend, **case.options)
    (gradient,) = torch.autograd.grad((stats.logp * g[0] + stats.entropy * g[1]).sum(), leaf)
    cases.assert_exact(case, z, stats, gradient, *cases.truth(case, z, t, *g))


@pytest.mark.parametrize("name", cases.EXACT)
def test_exact_of_numpy_and_of_a_head(name: str) -> None:
    """A head of one hidden unit per token: its logits are those of the table."""
    case = cases.EXACT[name]
    z, t, *g = cases.problem(case, torch.float32)
    values, right = cases.truth(case, z, t, *g)
    options = {k: v.numpy() if torch.is_tensor(v) else v for k, v in case.options.items()}
    stats = ll.token_stats(z.numpy(), t.numpy(), **options)
    cases.assert_exact(case, z, stats, torch.from_numpy(right), values, right)
    hidden, weight = torch.eye(cases.ROWS), z.t().contiguous().requires_grad_()
    stats = ll.linear_token_stats(hidden, weight, t, **case.options)
    (gradient,) = torch.autograd.grad((stats.logp * g[0] + stats.entropy * g[1]).sum(), weight)
    cases.assert_exact(case, z, stats, gradient.t(), values, right)


def calls(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Every public op that takes the options, on two tokens."""
    h, w = torch.randn(2, 4, dtype=dtype), torch.randn(6, 4, dtype=dtype)
    t, some = torch.tensor([0, 1]), torch.full((2,), -1.0)
    mask, spec = torch.tensor([True, True]), ll.presets["ppo"]
    batch = {"hidden": h, "targets": t}
    chain = options | {"temperature": options.get("temperature", 1.0)}
    return {
        "token_stats": lambda: ll.token_stats(h @ w.t(), t, **options),
        "token_stats of NumPy": lambda: ll.token_stats((h @ w.t()).numpy(), t.numpy(), **options),
        "linear_token_stats": lambda: ll.linear_token_stats(h, w, t, **options),
        "linear_token_stats of NumPy": lambda: ll.linear_token_stats(
            h.numpy(), w.numpy(), t.numpy(), **options
        ),
        "linear_token_stats, torch": lambda: ll.linear_token_stats(
            h, w, t, backend="torch", **options
        ),
        "linear_token_stats, tail_mass": lambda: ll.linear_token_stats(
            h, w, t, tail_mass=1e-3, **options
        ),
        "linear_policy_loss": lambda: ll.linear_policy_loss(
            h, w, t, some, some, mask, spec, **options
        ),
        "linear_sample": lambda: ll.linear_sample(h, w, row_ids=t, seed=1, step=0, **options),
        "linear_sample, top_k": lambda: ll.linear_sample(
            h, w, row_ids=t, seed=1, step=0, top_k=2, **options
        ),
        "check": lambda: ll.check(w, batch, **chain),
    }


@pytest.mark.parametrize("name", cases.REFUSED)
def test_refused_by_every_op(name: str) -> None:
    options, message = cases.REFUSED[name]
    for op, call in calls(options).items():
        with pytest.raises(ValueError, match=rf"^{re.split('[ ,]', op)[0]}: {message}") as e:
            call()
        # `check` computes the truth in float64 first.
        ranges = ("7.5e-37 and 1.3e+30 in float32", "1e-289 and 9.7e+288 in float64")
        assert any(f"must be between {text} arithmetic" in str(e.value) for text in ranges)


@pytest.mark.parametrize("name", ["softcap 1e-40", "temperature 1e-40", "temperature 1e40"])
def test_float64_computes_what_float32_cannot(name: str) -> None:
    options, _ = cases.REFUSED[name]
    z = torch.randn(2, 6, dtype=torch.float64)
    t = z.argmax(1)
    stats = ll.token_stats(z, t, **options)
    assert stats.logp.isfinite().all()
    with pytest.raises(ValueError, match=r"in float64 arithmetic, got 1\.0 / 1e-300"):
        ll.token_stats(z, t, temperature=1e-300)


TEMPERATURES = {
    1e-40: "logit_scale / temperature must be .*, got temperature 1e-40 in row 2",
    1e40: r"logit_scale / temperature must be .*, got temperature 1e\+40 in row 2",
    0.0: "temperature must be finite and > 0 on every row, got temperature 0.0 in row 2",
    -1.0: "temperature must be finite and > 0 on every row, got temperature -1.0 in row 2",
    float("nan"): "temperature must be finite and > 0 on every row, got temperature nan in row 2",
    float("inf"): "temperature must be finite and > 0 on every row, got temperature inf in row 2",
}


@pytest.mark.parametrize("value", TEMPERATURES)
def test_a_row_s_temperature_is_named(value: float) -> None:
    temperature = torch.tensor([1.0, value, value, 1.0], dtype=torch.float64)
    mask, t = torch.tensor([True, False, True, True]), torch.tensor([0, 1, 2, 3])
    h, w = torch.randn(4, 3), torch.randn(5, 3)
    message = TEMPERATURES[value]
    named: tuple[Callable[[], object], ...] = (
        lambda: ll.token_stats(h @ w.t(), t, mask=mask, temperature=temperature),
        lambda: ll.token_stats(
            (h @ w.t()).numpy(), t.numpy(), mask=mask.numpy(), temperature=temperature.numpy()
        ),
        lambda: ll.token_stats(
            h @ w.t(), t, mask=mask, temperature=temperature, backend="torch"
        ),
        lambda: ll.linear_token_stats(h, w, t, mask=mask, temperature=temperature),
    )  # fmt: skip
    for call in named:
        with pytest.raises(ValueError, match=message):
            call()
    good = torch.where(mask, 1.0, temperature)
    assert ll.token_stats(h @ w.t(), t, mask=mask, temperature=good).logp.isfinite().all()


OVERFLOW = "row 1: its logits times logit_scale / temperature overflow float32"


@pytest.mark.parametrize("backend", ["cpu", "torch", "numpy"])
@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"logit_scale": 1e30}, 1e30, OVERFLOW),
        ({"temperature": 1e-20}, 1e30, OVERFLOW),
        ({"temperature": 1e-20}, -1e30, OVERFLOW),
        ({"temperature": torch.tensor([1.0, 1e-20])}, 1e30, OVERFLOW),
        ({"bias": torch.full((5,), 3e38)}, 3e38, r"row 1: its logits plus bias hold a \+inf"),
    ],
)
def test_logits_that_only_an_option_makes_overflow(
    backend: str, options: dict[str, Any], size: float, message: str
) -> None:
    z, t = torch.zeros(2, 5), torch.tensor([0, 1])
    z[1] = size
    if backend == "numpy":
        options = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
        with pytest.raises(ValueError, match=message):
            ll.token_stats(z.numpy(), t.numpy(), **options)
        return
    with pytest.raises(ValueError, match=message):
        ll.token_stats(z, t, backend=backend, **options)
    hidden, weight = torch.eye(2), z.t().contiguous()
    with pytest.raises(ValueError, match=message):
        ll.linear_token_stats(hidden, weight, t, backend=backend, **options)


def test_a_logit_far_below_is_impossible_and_no_error() -> None:
    """Masks of the least float: scaled they are beyond float32, and p is 0 as it is for -inf."""
    z = torch.tensor([[0.0, 1.0, torch.finfo(torch.float32).min]])
    stats = ll.token_stats(z, torch.tensor([2]), temperature=0.5)
    same = ll.token_stats(z.clamp(min=-1e30), torch.tensor([1]), temperature=0.5)
    assert stats.logp.item() == -float("inf")
    assert stats.entropy.item() == same.entropy.item()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_saturated_softcaps(
    dtype: torch.dtype, backend: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 - tanh^2 has lost 1% where tanh is 1 - 4e-6, at u = 6.6, and all of it at 9."""
    monkeypatch.setenv("LOGITLESS_ISA", isa)
    z, t, u = cases.saturated(dtype)
    leaf = z.clone().requires_grad_()
    ll.token_stats(leaf, t, backend=backend, **cases.SATURATED).logp.sum().backward()
    cases.assert_slopes(z, t, u, leaf.grad)


def test_the_oracle_s_slope() -> None:
    """By finite differences of what does not cancel: log tanh' is -2 log cosh."""
    from logitless.reference.rows import softcap_slope

    u = np.linspace(-40, 40, 81)
    right = np.exp(-2 * np.logaddexp(u, -u) + 2 * np.log(2))
    assert np.allclose(softcap_slope(u, softcap=1.0), right, rtol=1e-13, atol=0)
    x, h = np.array([0.7, 2.0, -3.0]), 1e-6
    between = (np.tanh((x + h) / 2) - np.tanh((x - h) / 2)) / h
    assert np.allclose(softcap_slope(x, softcap=2.0), between, rtol=1e-9)


def test_kept_entries_without_a_slope_go_dense() -> None:
    """tail_mass keeps y and not u; where y is too near the cap a row's logits are made again."""
    vocab, n = 3000, 2
    z = torch.full((n, vocab), -20.0)
    z[:, 7], z[0, 9], z[1, 9] = 20.0, 90.0, 25.0
    hidden = torch.eye(n)
    t, options = torch.tensor([7, 7]), {"softcap": 15.0, "temperature": 0.5}
    gradients = []
    for tail in (0.0, 1e-3):
        weight = z.t().contiguous().requires_grad_()
        stats = ll.linear_token_stats(hidden, weight, t, tail_mass=tail, **options)
        (gradient,) = torch.autograd.grad(stats.logp.sum(), weight)
        gradients.append(gradient.t())
    zeros = (gradients[1] == 0).sum(1)
    # the first row is not served from its entries, the second is
    assert zeros.tolist() == [0, vocab - 2]
    kept = gradients[1] != 0
    assert torch.allclose(gradients[1][kept], gradients[0][kept], rtol=2e-5, atol=0)
