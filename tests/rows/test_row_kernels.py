"""The row kernels as machine code: instruction sets, threads, forks, sizes, the vector exp."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import _core, reference
from tests.support import cases
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

ISAS = _core.runtime.build_info()["isas"]


@pytest.mark.parametrize("name", ISAS)
def test_exp2_over_every_float(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1 ulp from 2^t (1.25 without FMA) over every 61st float of (-125.5, 0], 0 below.

    61 is prime to every power of two, so that all low mantissa bits occur; `-m slow` has them all.
    """
    monkeypatch.setenv("LOGITLESS_ISA", name)
    check_exp2(61, 1.25 if name == "scalar" else 1.0)


@pytest.mark.slow
def test_exp2_over_really_every_float() -> None:
    check_exp2(1, 1.25 if ISAS[0] == "scalar" else 1.0)


def check_exp2(stride: int, limit: float) -> None:
    bits = np.array([-1e-30, -125.49999], np.float32).view(np.uint32)
    worst, piece = 0.0, stride << 22
    for start in range(int(bits[0]), int(bits[1]) + 1, piece):
        stop = min(start + piece, int(bits[1]) + 1)
        t = np.arange(start, stop, stride, dtype=np.uint32).view(np.float32)
        t = np.resize(t, -(-len(t) // 64) * 64)
        out = np.full_like(t, np.nan)
        _core.rows.exp2(t, out)
        exact = np.exp2(t.astype(np.float64))
        ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
        worst = max(worst, float((np.abs(out - exact) / ulp).max()))
    assert worst <= limit, f"{worst} ulp"
    far = np.resize(np.array([-125.5, -126, -126.3, -127, -200, -3e38, -np.inf], np.float32), 64)
    out = np.full_like(far, np.nan)
    _core.rows.exp2(far, out)
    assert (out == 0).all()
    edge = np.resize(np.array([0.0, -0.0, np.nan], np.float32), 64)
    out = np.zeros_like(edge)
    _core.rows.exp2(edge, out)
    assert (out[:2] == 1).all()
    assert np.isnan(out[2])


LOW = {  # nats below the row's maximum: what e^x, its products and e^2x make of it
    "e^x is denormal": (-104.0, -87.0),
    "its gradient would be": (-87.0, -60.0),
    "e^2x is denormal": (-60.0, -43.0),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOW)
def test_rows_far_below_their_maximum(
    name: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the oracle has them, and without a denormal number, which takes 10 times as long."""
    monkeypatch.setenv("LOGITLESS_ISA", isa)
    low, high = LOW[name]
    generator = torch.Generator().manual_seed(6)
    z = (torch.rand(6, 3000, generator=generator) * (high - low) + low).to(dtype)
    z[:, 100], z[3:, 2900] = 0.0, -1.0
    t = torch.tensor([100, 100, 5, 100, 2900, 5])
    # float16 has no gradients below 6e-8.
    weights = (1.0, 1e-2) if dtype == torch.float16 else (1.0, 1e-5, 1e5)
    for weight, chain in (*((w, {}) for w in weights), (1e-2, {"softcap": 200.0})):
        leaf = z.clone().requires_grad_()
        stats = ll.token_stats(leaf, t, extras=EXTRAS, **chain)
        truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **chain)
        for value in ("logp", "entropy", "lse"):
            # a chain rounds y at its own size
            plain = truth[value] + (64 * 2.0**-23 if chain else 0)
            assert_values(getattr(stats, value), truth[value], dtype, plain=plain)
        for value in EXTRAS[:-1]:
            assert_values(stats.extras[value] / 30, truth[value] / 30, dtype)
        g = {"g_logp": np.full(6, weight), "g_entropy": np.full(6, 0.1 * weight)}
        ((stats.logp + 0.1 * stats.entropy) * weight).sum().backward()
        right, _ = reference.token_stats_backward(cases.to_numpy(z), t.numpy(), **g, **chain)
        assert_gradients(leaf.grad, right, dtype, scale=2 * weight)
        if dtype == torch.float32:
            size = leaf.grad.abs()
            assert not ((size > 0) & (size < torch.finfo(dtype).tiny)).any()


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_s_sums_are_no_denormal_numbers(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row of one maximum the sums are the maximum's own, to the last bit."""
    monkeypatch.setenv("LOGITLESS_ISA", isa)
    for low in (-87.3, -70.0, -50.0):
        z = np.full((1, 2048), low, np.float32)
        z[0, 9] = 0
        state = np.zeros((1, 8))
        _core.rows.Rows(1, targets=np.array([9])).forward(z, state, extras=True)
        rest = 2047 * np.exp(np.float64(np.float32(low))) * (low > -87)
        assert state[0, :2] == pytest.approx([0, 1 + rest], abs=0, rel=1e-15)
        assert state[0, 4] == 1
        assert abs(state[0, 5]) < 1e-35


def test_isas_agree() -> None:
    """Lane sums have one order everywhere; only fused multiply-add may differ."""
    z, t = cases.logits(4, 20, 3000, torch.float32), cases.targets(4, 20, 3000)
    results = {}
    for name in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOGITLESS_ISA", name)
            results[name] = torch.stack(ll.token_stats(z, t)[:3])
    for name in ISAS:
        assert (results[name] - results[ISAS[0]]).abs().max() <= 4e-6


def test_unknown_isa_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITLESS_ISA", "sse9")
    with pytest.raises(ValueError, match=r"LOGITLESS_ISA must be one of .*scalar.* got 'sse9'"):
        ll.token_stats(torch.zeros(1, 3), torch.tensor([0]))


def test_bits_do_not_depend_on_threads_rows_or_alignment() -> None:
    z, t = cases.logits(5, 21, 6000, torch.float32), cases.targets(5, 21, 6000)
    whole = ll.token_stats(z, t, extras=EXTRAS)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = ll.token_stats(z, t, extras=EXTRAS)
            for a, b in zip(whole[:3], again[:3], strict=True):
                assert_bitwise_equal(a, b)
    finally:
        torch.set_num_threads(threads)
    # Row 7 alone, at an odd address, inside wider memory.
    padded = torch.full((3, 6011), float("nan"))
    padded[1, 3:6003] = z[7]
    alone = ll.token_stats(padded[1:2, 3:6003], t[7:8])
    for a, b in zip(whole[:3], alone[:3], strict=True):
        assert_bitwise_equal(a[7:8], b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_forked_child_computes(library: str) -> None:
    """The parent has used its threads; in the child they are gone: nothing may wait for them."""
    script = textwrap.dedent(f"""
        import os, warnings
        import {library}
        import numpy as np
        import logitless as ll
        make = {"torch.from_numpy" if library == "torch" else "np.asarray"}
        z, t = make(np.random.default_rng(0).normal(size=(64, 9000))), make(np.arange(64))
        before = np.asarray(ll.token_stats(z, t).logp)
        warnings.simplefilter("ignore")
        child = os.fork()
        if child == 0:
            same = (np.asarray(ll.token_stats(z, t).logp) == before).all()
            os._exit(0 if same else 3)
        _, status = os.waitpid(child, 0)
        raise SystemExit(os.waitstatus_to_exitcode(status))
    """)
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """14200 x 151936 bf16 is 4.3 GB: the last row starts past 2^31 elements."""
    n, vocab = 14200, 151936
    z = torch.zeros(1, dtype=torch.bfloat16).expand(n, vocab).contiguous()
    z[-1, 12345] = 20.0
    t = torch.full((n,), 12345)
    stats = ll.token_stats(z, t)
    assert stats.logp[0].item() == pytest.approx(-math.log(vocab), abs=1e-5)
    expected = -math.log1p((vocab - 1) * math.exp(-20.0))
    assert stats.logp[-1].item() == pytest.approx(expected, abs=1e-6)
