"""The ops around device kernels, on fake ones too: flags of bad rows, autograd, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import logitless as ll
from logitless.backends import registry
from logitless.backends.row_kernels.errors import raise_now
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal, assert_values

pytestmark = pytest.mark.fakes


def test_memory_that_others_have_saved_is_not_written_unseen(device: Device) -> None:
    z, t = device.put(cases.logits(7, 10, 3000, torch.float32), cases.targets(7, 10, 3000))
    options = {"inplace_backward": True, "backend": device.backend}
    saved = torch.tanh(z.requires_grad_())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ll.token_stats(saved, t, **options).logp.sum().backward()
    both = z * 1.0
    calls = [ll.token_stats(both, t, **options, temperature=x).logp.sum() for x in (1.0, 2.0)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(calls).backward()
    with pytest.raises(ValueError, match=r"inplace_backward=True.*must not share places"):
        ll.token_stats(z[:1].expand(10, 3000), t, **options)


BAD = [
    ("nan", "row 3: its logits hold a NaN"),
    ("inf", r"row 3: its logits hold a \+inf"),
    ("empty", "row 3: it has no finite logit"),
    ("target", r"row 3: its target is outside \[0, 3000\)"),
    ("temperature", "row 3: its temperature must be finite and > 0"),
]


def bad_call(kind: str, device: Device) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, Any]]:
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
    logits, targets, temperature = device.put(z, t, temperature)
    return (logits.requires_grad_(), targets), {
        "temperature": temperature, "backend": device.backend
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), BAD, ids=[kind for kind, _ in BAD])
def test_bad_rows_raise_in_the_call_if_asked(
    device: Device, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    arguments, options = bad_call(kind, device)
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(*arguments, **options)
    mask = torch.arange(6, device=device.name) < 3
    assert ll.token_stats(*arguments, mask=mask, **options).logp.isfinite().all()


@pytest.mark.parametrize(("kind", "message"), BAD, ids=[kind for kind, _ in BAD])
def test_bad_rows_are_found_later(device: Device, kind: str, message: str) -> None:
    arguments, options = bad_call(kind, device)
    stats = ll.token_stats(*arguments, extras=("argmax",), **options)
    good = torch.tensor([True, True, True, False, True, False])
    for value in stats[:3]:
        assert value.isnan().tolist() == (~good).tolist()
    assert stats.extras["argmax"][[3, 5]].tolist() == [-1, -1]
    with pytest.raises(RuntimeError, match=f"token_stats: {message}.*LOGITLESS_CHECK=1"):
        stats.logp.sum().backward()
    # Reported once, then forgotten.
    mask = torch.arange(6, device=device.name) < 3
    for _ in range(2):
        assert ll.token_stats(*arguments, mask=mask, **options).logp.isfinite().all()


def test_the_failing_call_is_the_one_named(device: Device) -> None:
    h, w = device.put(torch.randn(4, 8), torch.randn(50, 8))
    h[2] = float("nan")
    t = torch.zeros(4, dtype=torch.int64, device=device.name)
    for _ in range(40):  # more calls than there are copies under way at a time
        ll.token_stats(h[:2] @ w.T, t[:2], backend=device.backend)
    device.wait()
    ll.linear_token_stats(h, w, t, backend=device.backend)
    device.wait()
    with pytest.raises(RuntimeError, match="linear_token_stats: row 2: its logits hold a NaN"):
        ll.token_stats(h @ w.T, t, backend=device.backend)


def test_compiles_without_a_break(device: Device) -> None:
    z, t, temperature = device.put(
        cases.logits(11, 6, 700, torch.float32), cases.targets(11, 6, 700), torch.rand(6) + 0.5
    )

    def loss(z: torch.Tensor) -> torch.Tensor:
        stats = ll.token_stats(z, t, temperature=temperature, backend=device.backend)
        return (stats.logp - 0.1 * stats.entropy).sum()

    torch._dynamo.reset()
    # Inductor has nothing to fuse here; on a CPU it would only call a compiler.
    compiler = "inductor" if device.name != "cpu" else "aot_eager"
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    results = []
    for f in (loss, compiled):
        leaf = z.clone().requires_grad_()
        value = f(leaf)
        value.backward()
        results.append((value, leaf.grad))
    assert_values(results[1][0].view(1), results[0][0].detach().view(1), torch.float32)
    assert_bitwise_equal(results[1][1], results[0][1])


def test_op_registration(device: Device) -> None:
    """Schema, fake kernel and autograd registration agree, by torch's own checker."""
    from logitless.inputs.options import EXACT
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.rows.op import row_stats
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    h, w = device.put(torch.randn(4, 8), torch.randn(50, 8))
    t = torch.zeros(4, dtype=torch.int64, device=device.name)
    rows = RowArguments(t, None, None, None, 1.0, 1.0, 0.0, device.backend)
    z = (h @ w.t()).requires_grad_()
    check_op(row_stats, z, rows, True, False, Shard())
    h.requires_grad_()
    tiling = Tiling(4, 50, 0, torch.float32, 0, "", torch.float32)
    check_op(linear_stats, h, w, rows, True, EXACT, tiling, Shard(), None, None)


@pytest.mark.parametrize(
    ("way", "op"), [(CHUNKS["whole"], "linear_policy_loss"), (APART, "linear_token_stats")]
)
def test_the_loss_names_a_bad_row(
    device: Device, way: Strategy, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is computed on the host knows of the row behind a NaN; a device's at the end."""
    force(monkeypatch, way)
    h, w, old = device.put(torch.randn(4, 8), torch.randn(2500, 8), torch.full((4,), -8.0))
    t = torch.zeros(4, dtype=torch.int64, device=device.name)
    h[2] = float("nan")

    def loss() -> None:
        ll.linear_policy_loss(
            h.requires_grad_(), w, t, old, old, t == 0, ll.presets["ppo"],
            backend=device.backend,
        )  # fmt: skip
        end_of_losses(h)

    with pytest.raises(RuntimeError, match=f"{op}: row 2: its logits hold a NaN"):
        loss()


def end_of_losses(like: torch.Tensor) -> torch.Tensor:
    """Where the kernels of the loss are the device's nobody has waited for them yet."""
    if not registry.token_kernels_of(like).on_host:
        raise_now(like.device)
    return like


@pytest.mark.parametrize("consumer", ["loss", "batch_stats", "covariance", "rollout_weights"])
def test_whoever_takes_values_to_the_host_names_a_bad_row(device: Device, consumer: str) -> None:
    z, t, old = device.put(torch.randn(4, 50), torch.zeros(4, dtype=torch.int64), torch.zeros(4))
    z[3] = float("inf")
    logp = ll.token_stats(z, t, backend=device.backend).logp
    mask, spec = t == 0, ll.presets["clip_cov"]
    ids = torch.arange(4, device=device.name)
    consume: Callable[[], Any] = {
        "loss": lambda: (
            ll.policy_loss(logp, old, old, mask, ll.presets["ppo"]),
            end_of_losses(logp),
        ),
        "batch_stats": lambda: (
            ll.batch_stats(logp, old, mask, spec, old_logp=old, token_ids=ids, seed=0, step=0),
            end_of_losses(logp),
        ),
        "covariance": lambda: (ll.covariance(logp, old, mask), end_of_losses(logp)),
        "rollout_weights": lambda: (
            ll.rollout_weights(logp, old, mask, ll.Correction()),
            end_of_losses(logp),
        ),
    }[consumer]
    with pytest.raises(RuntimeError, match=r"token_stats: row 3: its logits hold a \+inf"):
        consume()


BAD_BY_AN_OPTION: dict[str, tuple[dict[str, Any], float, str]] = {
    "temperature": (
        {"temperature": [1.0, 1e-40, 1e40]}, 1.0,
        "row 1: its temperature must be finite and > 0, in float32's range",
    ),
    "temperature of a softcap": (
        {"temperature": [1.0, 1e-12, 1e18], "softcap": 1e20}, 1.0,
        "row 1: its temperature must be finite and > 0, in float32's range",
    ),
    "overflow": (
        {"logit_scale": 1e30}, 1e30,
        "row 1: its logits times logit_scale / temperature overflow float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BY_AN_OPTION)
def test_rows_that_only_an_option_makes_bad(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, size, message = BAD_BY_AN_OPTION[kind]
    z, t = torch.zeros(3, 6), torch.tensor([0, 1, 2])
    z[1:] = torch.linspace(0.5, 1, 6) * size
    z, t = device.put(z, t)
    there = {
        k: torch.tensor(v, dtype=torch.float64, device=device.name) if type(v) is list else v
        for k, v in options.items()
    }
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"token_stats: {message}"):
        ll.token_stats(z, t, backend=device.backend, **there)
    mask = t < 1
    assert ll.token_stats(z, t, mask=mask, backend=device.backend, **there).logp.isfinite().all()
