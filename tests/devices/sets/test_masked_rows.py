"""sampling_mask on a device: the oracle's numbers, the CPU's errors, and nothing that waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.backends.row_kernels.errors import raise_now
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.device.waits import NothingIsRead
from tests.support.heads import V, batch, inputs_of, spec_of
from tests.support.mask_cases import KINDS, mask_of, sets
from tests.support.plans import machine
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.ranks import run_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FULL = ("kept_mass", "full_logp", "full_entropy")
NAMES = ("logp", "entropy", "lse")
# What a call's cost is chosen by: rows of weight that cost nothing, or dense products that do.
GATHERED, DENSE = 1e30, 1e-9


def head(seed: int, n: int, vocab: int, dtype: torch.dtype, hidden: int = 24) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, hidden, generator=g) for size in (n, vocab)]
    return [x.to(dtype) for x in made]


def there(device: Device, options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device.name) if torch.is_tensor(v) else v for k, v in options.items()}


def run(
    device: Device, h: Any, w: Any, t: Any, g: Any, ids: Any, **options: Any
) -> tuple[ll.TokenStats, list[torch.Tensor]]:
    """Statistics and the gradients of hidden, weight and bias, on the host."""
    given = there(device, options)
    leaves = [x.requires_grad_() for x in device.put(h, w)]
    if "bias" in given:
        given["bias"] = given["bias"].detach().clone().requires_grad_()
        leaves.append(given["bias"])
    mask = ids if isinstance(ids, ll.SamplingMask) else ll.SamplingMask.from_lists(ids)
    stats = ll.linear_token_stats(
        *leaves[:2], t.to(device.name), sampling_mask=mask, backend=device.backend, **given
    )
    g = [x.to(device.name) for x in g]
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return stats, [x.cpu() for x in torch.autograd.grad(loss, leaves)]


def oracle(h: Any, w: Any, t: Any, g: Any, **options: Any) -> tuple[Any, Any]:
    arrays = [cases.to_numpy(x) for x in (h, w, t)]
    up = {f"g_{name}": cases.to_numpy(x) for name, x in zip(NAMES, g, strict=True)}
    stats = reference.linear_token_stats(*arrays, **options)
    return stats, reference.linear_token_stats_backward(*arrays, **up, **options)


def far(ours: Any, truth: Any) -> float:
    truth = np.asarray(truth)
    return float(np.abs(cases.to_numpy(ours) - truth).max(initial=0)) / max(
        1.0, float(np.abs(truth).max(initial=0))
    )


@pytest.mark.parametrize("way", [GATHERED, DENSE], ids=["gathered", "dense"])
@pytest.mark.parametrize("chain", ["plain", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(
    device: Device, kind: str, chain: str, way: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, extras and all gradients; masked rows and rows without a set among them."""
    machine(monkeypatch, gathered=way)
    n, vocab = 11, device.fewer(4133) if way == GATHERED else 4133
    h, w = head(3, n, vocab, torch.float32)
    t, mask, g = cases.targets(3, n, vocab), cases.mask(3, n), cases.upstream(3, n)
    options, ids = cases.chain(chain, 3, n, vocab), sets(kind, 4, t, vocab)
    stats, found = run(device, h, w, t, g, ids, mask=mask, extras=(*FULL, *EXTRAS), **options)
    plain = cases.numpy_chain(options)
    given = {"mask": mask.numpy(), **plain}
    truth, right = oracle(h, w, t, g, sets=ids, **given)
    whole, _ = oracle(h, w, t, g, **given)
    logits = cases.to_numpy(h) @ cases.to_numpy(w).T
    truth["kept_mass"] = reference.kept_mass(logits, ids, **plain) * mask.numpy()
    truth |= {f"full_{name}": whole[name] for name in ("logp", "entropy")}
    for name in NAMES:
        assert far(getattr(stats, name), truth[name]) <= 5e-6, name
    for name, values in stats.extras.items():
        if name == "argmax":
            assert (cases.to_numpy(values)[mask] == truth[name][mask.numpy()]).all()
        else:
            assert far(values, truth[name]) <= 3e-5, name
    for ours, expected in zip(found, right, strict=False):
        assert far(ours, expected) <= 1e-5


@pytest.mark.parametrize("way", [GATHERED, DENSE], ids=["gathered", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(
    device: Device, dtype: torch.dtype, way: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to the truth as plain code in the same dtype; widths that are no vectors; the same
    bits twice."""
    machine(monkeypatch, gathered=way)
    n, vocab = 9 if device.interpreted else 23, device.fewer(3001)
    h, w = head(5, n, vocab, dtype, hidden=271)
    h /= 2
    t, g = cases.targets(5, n, vocab), cases.upstream(5, n)
    for kind in ("few", "mixed", "large"):
        ids = sets(kind, 6, t, vocab)
        truth, right = oracle(h, w, t, g, sets=ids)
        stats, found = run(device, h, w, t, g, ids)
        again, same = run(device, h, w, t, g, [row[::-1] for row in ids])
        plain, slack = run(Device("torch", "cpu"), h, w, t, g, ids)
        for name in NAMES:
            of_plain = np.abs(cases.to_numpy(getattr(plain, name)) - truth[name]).max()
            error = np.abs(cases.to_numpy(getattr(stats, name)) - truth[name]).max()
            assert error <= 2 * of_plain + 1e-5
            assert_bitwise_equal(getattr(stats, name).cpu(), getattr(again, name).cpu())
        for a, b, c, d in zip(found, slack, right, same, strict=False):
            error, of_plain = (float(np.abs(cases.to_numpy(x) - c).max()) for x in (a, b))
            assert error <= 2 * of_plain + torch.finfo(dtype).eps * float(np.abs(c).max())
            assert_bitwise_equal(a, d)


@pytest.mark.parametrize(
    ("dtype", "chain"), [(DTYPES[0], "row_temperature"), (DTYPES[1], "all"), (DTYPES[2], "plain")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_given_logits(device: Device, kind: str, chain: str, dtype: torch.dtype) -> None:
    """[N, V]: impossible tokens within a set, ties, a nearly certain row."""
    n, vocab = 11, 4133
    z, t, mask = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab), cases.mask(3, n)
    g, options = cases.upstream(3, n), cases.chain(chain, 3, n, vocab)
    ids, plain = sets(kind, 4, t, vocab), {"mask": mask.numpy(), **cases.numpy_chain(options)}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), sets=ids, **plain)
    up = {f"g_{name}": cases.to_numpy(x) for name, x in zip(NAMES, g, strict=True)}
    right = reference.token_stats_backward(cases.to_numpy(z), t.numpy(), sets=ids, **up, **plain)
    (leaf,) = device.put(z)
    stats = ll.token_stats(
        leaf.requires_grad_(), t.to(device.name), mask=mask.to(device.name),
        sampling_mask=ll.SamplingMask.from_lists(ids), extras=EXTRAS, backend=device.backend,
        **there(device, options),
    )  # fmt: skip
    for name in NAMES:
        assert far(getattr(stats, name), truth[name]) <= 5e-6, name
    for name, values in stats.extras.items():
        if name == "argmax":
            assert (cases.to_numpy(values)[mask] == truth[name][mask.numpy()]).all()
        else:
            assert far(values, truth[name]) <= 3e-5, name
    on = [x.to(device.name) for x in g]
    loss = (stats.logp * on[0] + stats.entropy * on[1] + stats.lse * on[2]).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    assert far(found, right[0]) <= eps


def test_a_row_depends_on_nothing_else(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gathered row has the same bits in any batch, few or so many that they go by the
    vocabulary."""
    machine(monkeypatch, gathered=GATHERED)
    vocab = device.fewer(1301)
    h, w = head(10, 23, vocab, torch.bfloat16, hidden=130)
    t, g = cases.targets(10, 23, vocab), cases.upstream(10, 23)
    ids = sets("large", 3, t, vocab)
    whole, (d_hidden, _) = run(device, h, w, t, g, ids)
    for n in (1, 9):
        stats, (d, _) = run(device, h[:n], w, t[:n], [x[:n] for x in g], ids[:n])
        for a, b in zip(stats[:3], whole[:3], strict=True):
            assert_bitwise_equal(a, b[:n])
        assert_bitwise_equal(d, d_hidden[:n])


def test_impossible_tokens_of_a_set(device: Device) -> None:
    """A logit of -inf within a set has no part in it; a set of nothing else is a bad row."""
    h, w = head(9, 3, 50, torch.float32)
    t, ids, g = torch.tensor([4, 5, 6]), [[4, 9, 7], [5, 9], [6]], cases.upstream(2, 3)
    bias = torch.zeros(50)
    bias[9] = -float("inf")
    without = [[i for i in row if i != 9] for row in ids]
    some, found = run(device, h, w, t, g, ids, bias=bias)
    others, right = run(device, h, w, t, g, without, bias=bias)
    for a, b in zip(some[:3], others[:3], strict=True):
        assert_bitwise_equal(a, b)
    assert (found[1][9] == 0).all() and found[1].isfinite().all()
    for x, y in zip(found, right, strict=True):
        torch.testing.assert_close(x, y)


def test_rows_without_a_gradient_are_not_read(device: Device) -> None:
    """Nor are the weight's rows of no set, and a row of weight that no served row asks for."""
    h, w = head(11, 20, 100, torch.float32)
    t, ids = torch.arange(20) * 3, [[i * 3, i * 3 + 1] for i in range(20)]
    g = cases.upstream(11, 20)
    assert (g[0][::4] == 0).all()
    w[60:] = float("nan")
    stats, (d_hidden, d_weight) = run(device, h, w, t, g, ids)
    assert stats.logp.isfinite().all() and d_hidden.isfinite().all()
    assert (d_hidden[::4] == 0).all() and (d_weight[60:] == 0).all()
    assert (d_weight[:2] == 0).all() and (d_weight[3:5] != 0).any(1).all()


def test_the_gradient_of_weight_as_rows(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gathered=GATHERED)
    vocab = device.fewer(3000)
    h, w = head(12, 20, vocab, torch.bfloat16)
    t, g = cases.targets(12, 20, vocab), cases.upstream(12, 20)
    ids = sets("few", 1, t, vocab)
    _, dense = run(device, h, w, t, g, ids)
    _, rows = run(device, h, w, t, g, ids, weight_grad="rows")
    assert rows[1].is_sparse and rows[1].is_coalesced()
    assert_bitwise_equal(rows[0], dense[0])
    assert_bitwise_equal(rows[1].to_dense(), dense[1])
    named = rows[1].indices()[0].tolist()
    assert named == sorted({i for row in ids for i in row})
    with pytest.raises(ValueError, match="needs a set of tokens for every row of the mask"):
        run(device, h, w, t, g, [*ids[:-1], []], weight_grad="rows")


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_parts(device: Device, frozen: int) -> None:
    vocab = device.fewer(3000)
    h, w = head(11, 20, vocab, torch.float32)
    t = cases.targets(11, 20, vocab)
    mask = mask_of("few", 1, t, vocab)
    g = cases.upstream(11, 20)
    _, both = run(device, h, w, t, g, mask)
    leaves = device.put(h, w)
    leaves[1 - frozen].requires_grad_()
    stats = ll.linear_token_stats(
        *leaves, t.to(device.name), sampling_mask=mask, backend=device.backend
    )
    on = [x.to(device.name) for x in g]
    loss = (stats.logp * on[0] + stats.entropy * on[1] + stats.lse * on[2]).sum()
    (found,) = torch.autograd.grad(loss, leaves[1 - frozen])
    assert_bitwise_equal(found.cpu(), both[1 - frozen])


def test_an_adapter_has_its_gradients(device: Device) -> None:
    vocab = device.fewer(700)
    h, w = head(4, 12, vocab, torch.float32, hidden=16)
    t, ids = cases.targets(4, 12, vocab), sets("few", 2, cases.targets(4, 12, vocab), vocab)
    a, b = torch.randn(3, 16) * 0.1, torch.randn(vocab, 3) * 0.1
    found = []
    for where in (Device("cpu", "cpu"), device):
        leaves = [x.requires_grad_() for x in where.put(h, w, a, b)]
        stats = ll.linear_token_stats(
            *leaves[:2], t.to(where.name), adapter=(*leaves[2:], 0.5), backend=where.backend,
            sampling_mask=ll.SamplingMask.from_lists(ids),
        )  # fmt: skip
        found.append([x.cpu() for x in torch.autograd.grad(stats.logp.sum(), leaves)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "entropy"])
def test_policy_loss(device: Device, name: str) -> None:
    """Loss and gradients are the CPU's; rows with and without a set."""
    data, spec = batch(3), spec_of(name)
    mask = mask_of("mixed", 5, data["targets"], V)
    names = ("targets", "old_logp", "advantages", "mask")
    found = []
    for where in (Device("cpu", "cpu"), device):
        on, options = there(where, data), there(where, inputs_of(spec, data))
        leaves = [on[key].clone().requires_grad_() for key in ("hidden", "weight")]
        out = ll.linear_policy_loss(
            *leaves, *(on[key] for key in names), spec, sampling_mask=mask, backend=where.backend,
            **options,
        )  # fmt: skip
        found.append([out.loss.cpu(), *(x.cpu() for x in torch.autograd.grad(out.loss, leaves))])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("way", [GATHERED, DENSE], ids=["gathered", "dense"])
@pytest.mark.parametrize("kind", ["few", "large", "mixed"])
def test_the_host_waits_for_nothing(
    device: Device, kind: str, way: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets are known on the host, so their sizes are: forward and backward ask for no number."""
    machine(monkeypatch, gathered=way)
    vocab = device.fewer(901)
    h, w = head(10, 23, vocab, torch.bfloat16, hidden=40)
    t = cases.targets(10, 23, vocab)
    mask = mask_of(kind, 3, t, vocab)
    if kind == "mixed":
        # rows that have no set are counted as those of a mask are, which is one wait
        mask = ll.SamplingMask.from_lists(
            [row or [i] for row, i in zip(mask.lists(), t.tolist(), strict=True)]
        )
    leaves = [x.requires_grad_() for x in device.put(h, w)]
    targets = t.to(device.name)
    raise_now(targets.device)
    with NothingIsRead():
        stats = ll.linear_token_stats(*leaves, targets, sampling_mask=mask, backend=device.backend)
        found = torch.autograd.grad((stats.logp - 0.1 * stats.entropy).sum(), leaves)
    assert all(x.isfinite().all() for x in found)


def test_no_rows(device: Device) -> None:
    h, w = head(1, 0, 30, torch.float32)
    none = torch.zeros(0)
    for ids in ([], ll.SamplingMask.from_lists([])):
        stats, found = run(device, h, w, torch.zeros(0, dtype=torch.int64), [none] * 3, ids)
        assert stats.logp.shape == (0,) and (found[1] == 0).all()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_vocabulary_of_two_ranks(device: Device, tmp_path: Path) -> None:
    store, where = str(tmp_path / "store"), [device.backend, device.name]
    run_ranks("vocab.device_masks", [[str(rank), "2", store, *where] for rank in range(2)], 300)


# ---- errors


def test_what_is_wrong_with_a_set_is_named_at_once(device: Device) -> None:
    """As on the CPU; and rows outside of the mask are not looked at."""
    h, w = head(2, 3, 20, torch.float32)
    t, g = torch.tensor([1, 2, 3]), cases.upstream(1, 3)
    for ids, words in (
        ([[1], [2, 20], [3]], r"row 1: sampling_mask has token 20, outside \[0, 20\)"),
        ([[1], [2, 7, 2], [3]], "row 1: sampling_mask has token 2 twice"),
    ):
        with pytest.raises(ValueError, match=f"linear_token_stats: {words}"):
            run(device, h, w, t, g, ids)
        mask = torch.tensor([True, False, True])
        stats, _ = run(device, h, w, t, g, ids, mask=mask)
        assert stats.logp.cpu().tolist()[1] == 0


BAD = {
    "target": "its target is outside its sampling_mask",
    "target elsewhere": "its target is outside its sampling_mask",
    "NaN": "its logits hold a NaN",
    "temperature": "its temperature must be finite and > 0",
    "empty": "it has no finite logit",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named(device: Device, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its place in the batch: in the call where that is asked for, else at the next one."""
    h, w = head(2, 4, 20, torch.float32)
    t, g, ids = torch.tensor([1, 2, 3, 4]), cases.upstream(1, 4), [[], [2, 9], [3, 5], [4]]
    options: dict[str, Any] = {}
    if kind == "target":
        t[2] = 9
    elif kind == "target elsewhere":
        t[2] = -100
    elif kind == "NaN":
        h[2, 1] = float("nan")
    elif kind == "temperature":
        options["temperature"] = torch.tensor([1.0, 1.0, -1.0, 1.0])
    else:
        options["bias"] = torch.zeros(20)
        options["bias"][[3, 5]] = -float("inf")
    # NaN inside the set of rows that are masked out
    stats, _ = run(device, h, w, t, g, ids, mask=torch.tensor([True, True, False, True]), **options)
    assert stats.logp.isfinite().all()
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"row 2: {BAD[kind]}"):
        run(device, h, w, t, g, ids, **options)
    monkeypatch.setenv("LOGITLESS_CHECK", "0")
    there_now = torch.device(device.name)

    def later() -> None:
        # the backward may be the next call
        stats, _ = run(device, h, w, t, g, ids, **options)
        assert stats.logp[2].isnan() and stats.logp[[0, 1, 3]].isfinite().all()
        raise_now(there_now)

    with pytest.raises(RuntimeError, match=f"sampling_mask: row 2: {BAD[kind]}"):
        later()
