"""Draws of a device against the CPU's: the same token of the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import logitless as ll
from logitless import _core
from logitless.backends import registry
from logitless.backends.row_kernels.errors import raise_now
from logitless.ops.sampling import whole_rows
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.device.draws import drawing_there, sampled, truncated
from tests.support.device.mixed import as_gpu, gpu
from tests.support.device.waits import NothingIsRead
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.ranks import run_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF, BLOCK = float("inf"), 2048


@pytest.fixture(autouse=True)
def _draws(device: Device) -> None:
    if registry.get(device.backend).sampling is None:
        pytest.skip(f"{device.backend} draws no tokens")


def exact_head(n: int, vocab: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Whose products no order of additions changes, nor a rounding to 16 bits."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randint(-3, 4, (n, 8), generator=g).float()
    return h, torch.randint(-3, 4, (vocab, 8), generator=g).float()


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_tokens_as_on_the_cpu(device: Device, dtype: torch.dtype, kind: str) -> None:
    n, vocab = 40, 2 * BLOCK + 77
    z = cases.logits(3, n, vocab, dtype)
    # Flat rows, in which all blocks and tokens have a chance.
    z[1::2] /= 8
    options = cases.chain(kind, 3, n, vocab)
    own = sampled("cpu", "cpu", z, **options)
    found = sampled(device.backend, device.name, z, **options)
    assert found.token.tolist() == own.token.tolist()
    assert {0, 1} <= set((found.token // BLOCK).tolist())
    # The blocks' sums are the CPU's where it fuses products and additions; a softcap is not.
    torch.testing.assert_close(found.score, own.score, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found.y, own.y, rtol=0 if kind not in ("softcap", "all") else 1e-6,
                               atol=0)  # fmt: skip
    torch.testing.assert_close(found.state[:, :3], own.state[:, :3], rtol=3e-6, atol=1e-6)


def test_scores_have_the_bits_of_the_cpu(device: Device) -> None:
    """The same floats are added in the same order, which then fold in double."""
    if _core.runtime.build_info()["isas"] == ["scalar"]:
        pytest.skip("this CPU fuses no product and addition")
    if device.backend == "triton":
        pytest.skip("Triton adds floats up in an order of its own")
    for dtype in DTYPES:
        # Of bfloat16 the last columns, less than 64, are added in other lanes.
        z = cases.logits(4, 24, 4736, dtype)
        own = sampled("cpu", "cpu", z, temperature=0.7)
        found = sampled(device.backend, device.name, z, temperature=0.7)
        torch.testing.assert_close(found.score, own.score, rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_and_rows_do_not_change_a_draw(device: Device, dtype: torch.dtype) -> None:
    z = cases.logits(5, 9, 3 * BLOCK + 5, dtype)
    bias = torch.randn(z.shape[1])
    whole = sampled(device.backend, device.name, z, bias=bias)
    for cuts in ((BLOCK,), (2 * BLOCK,), (BLOCK, 2 * BLOCK, 3 * BLOCK)):
        cut = sampled(device.backend, device.name, z, cuts, bias=bias)
        for one, other in zip(cut[:3], whole[:3], strict=True):
            assert_bitwise_equal(one, other)
    wide = torch.full((9, z.shape[1] + 3), 7.0).to(dtype)
    wide[:, 1:-2] = z
    moved = sampled(device.backend, device.name, wide[:, 1:-2], bias=bias)
    for one, other in zip(moved[:3], whole[:3], strict=True):
        assert_bitwise_equal(one, other)


@pytest.mark.parametrize("vocab", [1, 2, 31, 33, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 63])
def test_borders_of_the_vocabulary(device: Device, vocab: int) -> None:
    """Where one token is possible it is drawn, wherever it stands; else the CPU's."""
    places = sorted({0, 1, 31, 32, 63, 64, BLOCK - 1, BLOCK, vocab - 2, vocab - 1})
    places = [place for place in places if 0 <= place < vocab]
    z = torch.full((len(places) + 1, vocab), -INF)
    z[range(len(places)), places] = torch.linspace(-1e4, 1e4, len(places))
    z[-1] = torch.randn(vocab)
    own = sampled("cpu", "cpu", z)
    found = sampled(device.backend, device.name, z)
    assert found.token.tolist() == own.token.tolist()
    assert found.token[:-1].tolist() == places
    assert_bitwise_equal(found.y, own.y)


def test_tiles_without_a_finite_logit(device: Device) -> None:
    z = torch.randn(6, 2 * BLOCK)
    z[0, :BLOCK], z[1, BLOCK:], z[2] = -INF, -INF, -INF
    z[3, 5], z[4, BLOCK + 9] = float("nan"), INF
    own = sampled("cpu", "cpu", z, (BLOCK,))
    found = sampled(device.backend, device.name, z, (BLOCK,))
    assert found.token.tolist() == own.token.tolist()
    assert found.token[0] >= BLOCK > found.token[1]
    assert found.token[2] == -1


@pytest.mark.parametrize(
    "key", [{"seed": 0, "step": 0}, {"seed": 2**63, "step": 1}, {"seed": 5, "step": 2**42}], ids=str
)
def test_noise_is_of_the_key(device: Device, key: dict[str, int]) -> None:
    z = torch.randn(30, 4200, generator=torch.Generator().manual_seed(6))
    own = sampled("cpu", "cpu", z, key=key)
    assert sampled(device.backend, device.name, z, key=key).token.tolist() == own.token.tolist()
    assert sampled("cpu", "cpu", z).token.tolist() != own.token.tolist()


def bad_head(device: Device, kind: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    h, w = torch.randn(5, 4), torch.randn(3000, 4)
    options: dict[str, Any] = {}
    if kind == "nan":
        h[2] = float("nan")
    elif kind == "nothing":
        options["bias"] = torch.full((3000,), -INF)
    else:
        options["temperature"] = torch.tensor([1.0, 1.0, -2.0, 1.0, 1.0])
    there = {name: x.to(device.name) for name, x in options.items()}
    return [x.to(device.name) for x in (h, w, torch.arange(5))], there


@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}], ids=str)
@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", "row 2: its logits hold a NaN"), ("nothing", "row 0: it has no finite logit"),
     ("temperature", "row 2: its temperature must be finite")],
)  # fmt: skip
def test_bad_rows(
    device: Device, kind: str, message: str, truncation: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At the next call, or in the call itself; the others are drawn."""
    (h, w, ids), options = bad_head(device, kind)
    options = {**options, **truncation, "seed": 0, "step": 0, "row_ids": ids}
    with drawing_there(device):
        drawn = ll.linear_sample(h, w, **options)
        good = drawn.logp.isfinite().tolist()
        assert good == [kind != "nothing" and i != 2 for i in range(5)]
        with pytest.raises(RuntimeError, match=f"linear_sample: {message}"):
            raise_now(h.device)
        monkeypatch.setenv("LOGITLESS_CHECK", "1")
        with pytest.raises(ValueError, match=f"linear_sample: {message}"):
            ll.linear_sample(h, w, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["plain", "row_temperature", "bias"])
def test_linear_sample(
    device: Device, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public function in tiles of a GPU, which are of whole blocks here; nothing is read."""
    n, vocab = 24, 2 * BLOCK + 901
    h, w = (x.to(dtype) for x in exact_head(n, vocab))
    options = cases.chain(kind, 1, n, vocab)
    key = {"seed": 3, "step": 4, "row_ids": torch.arange(n) * 5}
    own = ll.linear_sample(h, w, **key, **options)
    machine = gpu(column_quantum=256, tile_bytes=n * 2400 * dtype.itemsize)
    as_gpu(monkeypatch, device.backend, machine, stands_in=device.name == "cpu")
    given = {**key, **options}
    given = {k: v.to(device.name) if torch.is_tensor(v) else v for k, v in given.items()}
    there = [x.to(device.name) for x in (h, w)]
    # What calls before have flagged is known by then.
    raise_now(there[0].device)
    with drawing_there(device), NothingIsRead():
        found = ll.linear_sample(*there, **given)
    assert found.token.device == found.logp.device == there[0].device
    assert found.token.tolist() == own.token.tolist()
    torch.testing.assert_close(found.logp.cpu(), own.logp, rtol=0, atol=3e-6)
    torch.testing.assert_close(found.entropy.cpu(), own.entropy, rtol=0, atol=3e-6)
    assert found.sampling_mask.lists() == [[]] * n
    assert_bitwise_equal(found.kept_logp, found.logp)
    raise_now(there[0].device)


@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.7}], ids=str)
def test_scoring_gives_the_bits_of_the_draw(
    device: Device, truncation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch_invariant, in another batch, in tiles of a GPU."""
    h, w = torch.randn(20, 16), torch.randn(2 * BLOCK + 301, 16)
    machine = gpu(column_quantum=256, tile_bytes=4096 * 2400 * 4)
    as_gpu(monkeypatch, device.backend, machine, stands_in=device.name == "cpu")
    h, w, ids = (x.to(device.name) for x in (h, w, torch.arange(20)))
    with drawing_there(device):
        drawn = ll.linear_sample(
            h, w, seed=1, step=2, row_ids=ids, batch_invariant=True, **truncation
        )
    some = torch.arange(19, -1, -3).to(device.name)
    scored = ll.linear_token_stats(
        h[some], w, drawn.token[some], batch_invariant=True, backend=device.backend
    )
    assert_bitwise_equal(scored.logp, drawn.logp[some])
    assert_bitwise_equal(scored.entropy, drawn.entropy[some])


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_vocabulary_of_two_ranks(device: Device, tmp_path: Path) -> None:
    store, where = str(tmp_path / "store"), [device.backend, device.name]
    run_ranks("vocab.device_sample", [[str(rank), "2", store, *where] for rank in range(2)], 300)


# ---- top_k, top_p, min_p: the same sets


TRUNCATIONS: list[dict[str, Any]] = [
    {"top_k": 1}, {"top_k": 40}, {"top_p": 0.6}, {"min_p": 0.05}, {"top_p": 1e-6}, {"min_p": 1.0},
    {"top_k": 90, "top_p": 0.8}, {"top_k": 1100, "top_p": 0.7, "min_p": 0.01}, {"top_k": 5000},
]  # fmt: skip


def assert_same(device: Device, z: torch.Tensor, truncation: dict[str, Any], **options: Any) -> int:
    """The size of the largest set."""
    own = truncated("cpu", "cpu", z, truncation, **options)
    found = truncated(device.backend, device.name, z, truncation, **options)
    assert found.sets == own.sets
    assert found.token.tolist() == own.token.tolist()
    # by value: -0 is 0
    assert (found.y == own.y).all()
    assert found.logp is not None
    for i, (kept, token) in enumerate(zip(found.sets, found.token.tolist(), strict=True)):
        temperature = torch.as_tensor(options.get("temperature", 1.0)).double().expand(len(z))[i]
        y = z[i].double() + options.get("bias", torch.zeros(z.shape[1]))
        scores = (y[kept] / temperature).log_softmax(0)
        assert found.logp[i].item() == pytest.approx(scores[kept.index(token)].item(), abs=2e-6)
    return max(map(len, own.sets))


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peaked_rows(device: Device, dtype: torch.dtype, truncation: dict[str, Any]) -> None:
    z = cases.logits(2, 4, 1300, dtype)
    z[0] *= torch.linspace(1, 3, 1300).to(dtype)
    assert_same(device, z, truncation)


@pytest.mark.parametrize("truncation", [{"top_p": 0.9}, {"top_k": 2500, "top_p": 0.99}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_sets_of_several_slabs(
    device: Device, dtype: torch.dtype, truncation: dict[str, Any]
) -> None:
    """More than are sorted at once; of bfloat16 most of them equal others."""
    z = (torch.randn(2, 3500, generator=torch.Generator().manual_seed(8)) / 4).to(dtype)
    z[1, ::3] = -INF
    temperature = torch.tensor([0.7, 3.0])
    assert assert_same(device, z, truncation, temperature=temperature) > 2048


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_equal_logits(device: Device, levels: int) -> None:
    """The border runs through equal ones, where the smaller token counts; -0 and 0 are equal."""
    g = torch.Generator().manual_seed(levels)
    z = (torch.randint(0, levels, (2, 1900), generator=g) - levels // 2).float()
    z[:, ::2] *= -1.0
    for truncation in ({"top_k": 700}, {"top_p": 0.5}, {"top_k": 1300, "top_p": 0.25}):
        assert_same(device, z, truncation)


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 31, 1023, 1025, 2049])
def test_sets_at_borders_of_the_vocabulary(device: Device, vocab: int) -> None:
    z = torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab))
    if vocab > 9:
        z[1, :-1] = -INF
    for truncation in ({"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}):
        assert_same(device, z, truncation)


def test_bias_and_rows_that_start_anywhere(device: Device) -> None:
    z = cases.logits(9, 4, 1203, torch.bfloat16)
    bias = torch.randn(1203)
    assert_same(device, z, {"top_p": 0.8}, bias=bias, temperature=0.8)
    wide = torch.zeros(4, 1207, dtype=torch.bfloat16)
    wide[:, 3:1206] = z
    assert_same(device, wide[:, 3:1206], {"top_p": 0.8}, bias=bias, temperature=0.8)


def test_sets_of_a_softcap(device: Device) -> None:
    """tanh differs by roundings: so may the border of top_p, and never that of top_k here."""
    z = cases.logits(10, 4, 1203, torch.float32)[1:]
    options = {"softcap": 12.0, "logit_scale": 1.2, "temperature": torch.tensor([0.5, 1.0, 1.5])}
    for truncation in ({"top_k": 30}, {"top_p": 0.8}):
        own = truncated("cpu", "cpu", z, truncation, **options)
        found = truncated(device.backend, device.name, z, truncation, **options)
        assert found.sets == own.sets
        assert found.token.tolist() == own.token.tolist()
        torch.testing.assert_close(found.y, own.y, rtol=1e-6, atol=0)


def tied_head(n: int, vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Whose products no order of additions changes, most of them equal to others."""
    g = torch.Generator().manual_seed(3)
    h = torch.randint(-3, 4, (n, 8), generator=g)
    return h.to(dtype), torch.randint(-3, 4, (vocab, 8), generator=g).to(dtype)


@pytest.mark.parametrize("budget", [None, "small"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_linear_sample_from_the_top(
    device: Device, dtype: torch.dtype, budget: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public function; nothing is read before the set is asked for."""
    n, vocab = 7, 1153
    h, w = tied_head(n, vocab, dtype)
    temperature, ids = torch.linspace(0.5, 2, n), torch.arange(n) - 3
    key: dict[str, Any] = {"seed": 3, "step": 4, "top_p": 0.8, "min_p": 0.01}
    own = ll.linear_sample(h, w, **key, temperature=temperature, row_ids=ids)
    if budget is not None:
        plan = ll.plan(n, 8, vocab, dtype, backward=False, device=device.name)
        of_row = vocab * getattr(torch, plan.logits_dtype).itemsize
        key["memory_budget"] = plan.total_bytes + 3 * of_row
    calls: list[int] = []
    logits_of = whole_rows.logits_of

    def counted(h: torch.Tensor, *more: Any) -> Any:
        calls.append(len(h))
        return logits_of(h, *more)

    monkeypatch.setattr(whole_rows, "logits_of", counted)
    there = [x.to(device.name) for x in (h, w, temperature, ids)]
    # What calls before have flagged is known by then.
    raise_now(there[0].device)
    with drawing_there(device), NothingIsRead():
        found = ll.linear_sample(*there[:2], **key, temperature=there[2], row_ids=there[3])
    if device.name == "cpu":
        # As many rows at a time as there is room for: by default all of them.
        assert calls == ([7] if budget is None else [3, 3, 1])
    assert found.token.tolist() == own.token.tolist()
    assert found.sampling_mask.lists() == own.sampling_mask.lists()
    assert found.sampling_mask.token_ids.device == there[0].device
    for name in ("logp", "entropy", "kept_logp"):
        torch.testing.assert_close(
            getattr(found, name).cpu(), getattr(own, name), rtol=0, atol=1e-5 if dtype == DTYPES[0]
            else 2e-5, msg=name,
        )  # fmt: skip


def test_no_rows(device: Device) -> None:
    h, w = (x.to(device.name) for x in tied_head(0, 300, torch.float32))
    ids = torch.arange(0, device=device.name)
    with drawing_there(device):
        for truncation in ({}, {"top_k": 3}):
            found = ll.linear_sample(h, w, seed=0, step=0, row_ids=ids, **truncation)
            assert found.token.shape == found.kept_logp.shape == (0,)
            assert found.sampling_mask.lists() == []
