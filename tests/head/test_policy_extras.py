"""Extras of linear_policy_loss, and its log-probs of selected ids, are those of
linear_token_stats, however the call runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.inputs.options import EXTRAS
from tests.support.heads import batch
from tests.support.plans import APART, CHUNKS, LEAVES, force, took_one_pass
from tests.support.tolerances import assert_bitwise_equal, assert_values

WAYS = {"apart": APART, **CHUNKS, "tail": None}
IDS = torch.tensor([7, 0, 2499, 7, 2048])


def call(data: dict[str, Any], **options: Any) -> Any:
    leaves = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in data.items()}
    out = ll.linear_policy_loss(**leaves, spec=ll.presets["dapo"], **options)
    return out, torch.autograd.grad(out.loss, [leaves[k] for k in LEAVES])


def check(found: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    assert list(found) == list(expected)
    for name, values in found.items():
        right = expected[name]
        assert values.dtype == right.dtype and values.shape == right.shape, name
        assert not values.requires_grad
        if name == "argmax":
            assert torch.equal(values, right)
        else:
            assert_values(values / 30, right / 30, dtype)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_way(monkeypatch: pytest.MonkeyPatch, way: Any, dtype: torch.dtype) -> None:
    data = {k: v.to(dtype) if k in LEAVES else v for k, v in batch(21).items()}
    tail_mass = 0.3 if way is None else 0.0
    options: dict[str, Any] = {"temperature": 0.7, "softcap": 20.0, "tail_mass": tail_mass}
    leaves = {k: data[k].clone().requires_grad_() for k in LEAVES}
    stats = ll.linear_token_stats(
        **leaves, targets=data["targets"], mask=data["mask"], extras=EXTRAS, **options
    )
    if way is not None:
        force(monkeypatch, way)
    out, gradients = call(data, extras=EXTRAS, **options)
    assert took_one_pass(out) == (way is not APART)
    check(out.extras, stats.extras, dtype)
    assert (out.extras["argmax"][~data["mask"]] == -1).all()
    assert (out.extras["sum_p2"][~data["mask"]] == 0).all()
    assert (out.extras["dropped_mass"] > 0).any() == (tail_mass > 0)
    plain, others = call(data, **options)
    assert plain.extras == {}
    assert_values(out.loss.detach().view(1), plain.loss.detach().view(1), dtype)
    for a, b in zip(gradients, others, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("names", [("argmax",), ("dropped_mass", "log_sum_p2"), ("mean_logit",)])
def test_those_that_are_asked_for_in_their_order(names: tuple[str, ...]) -> None:
    """Also without a gradient, in NumPy, and by plain torch."""
    data = batch(22)
    expected = ll.linear_token_stats(
        data["hidden"], data["weight"], data["targets"], mask=data["mask"], extras=names
    ).extras
    out, _ = call(data, extras=names)
    check(out.extras, expected, torch.float32)
    for backend in ("auto", "torch"):
        alone = ll.linear_policy_loss(
            **data, spec=ll.presets["dapo"], extras=names, backend=backend
        )
        check(alone.extras, expected, torch.float32)
    arrays = {k: v.numpy() for k, v in data.items()}
    there = ll.linear_policy_loss(**arrays, spec=ll.presets["dapo"], extras=names).extras
    for name in names:
        np.testing.assert_allclose(there[name], expected[name].numpy(), rtol=1e-5, atol=1e-5)


def test_no_row() -> None:
    data = batch(23)
    data["mask"] = torch.zeros_like(data["mask"])
    out, _ = call(data, extras=("argmax", "sum_p2"))
    assert (out.extras["argmax"] == -1).all() and (out.extras["sum_p2"] == 0).all()


def test_what_lies_outside_the_mask_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(24)
    force(monkeypatch, CHUNKS["tall"])
    out, _ = call(data, extras=("mean_logit",))
    poisoned = {**data, "hidden": torch.where(data["mask"][..., None], data["hidden"], torch.nan)}
    again, _ = call(poisoned, extras=("mean_logit",))
    assert_bitwise_equal(out.extras["mean_logit"], again.extras["mean_logit"])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("extras", [(), ("argmax", "sum_p2")], ids=["alone", "with_extras"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_selected_ids(
    monkeypatch: pytest.MonkeyPatch, way: Any, extras: tuple[str, ...], dtype: torch.dtype
) -> None:
    data = {k: v.to(dtype) if k in LEAVES else v for k, v in batch(25).items()}
    options: dict[str, Any] = {"temperature": 0.7, "softcap": 20.0, "bias": torch.randn(2500)}
    options["tail_mass"] = 0.3 if way is None else 0.0
    asked = {"extras": extras, "selected_ids": IDS}
    head = (data[k] for k in ("hidden", "weight", "targets"))
    expected = ll.linear_token_stats(*head, mask=data["mask"], **asked, **options)
    if way is not None:
        force(monkeypatch, way)
    out, gradients = call(data, **asked, **options)
    assert took_one_pass(out) == (way is not APART)
    assert list(out.extras) == list(extras)
    check({"selected": out.selected}, {"selected": expected.selected}, dtype)
    assert (out.selected[~data["mask"]] == 0).all()
    plain, others = call(data, **options)
    assert plain.selected is None
    assert torch.equal(out.loss, plain.loss)
    for a, b in zip(gradients, others, strict=True):
        assert_bitwise_equal(a, b)


def test_selected_ids_elsewhere() -> None:
    """Without a gradient, by plain torch, in NumPy, with an adapter, and in a graph."""
    data, spec = batch(26), ll.presets["dapo"]
    head = [data[k] for k in ("hidden", "weight", "targets")]
    g = torch.Generator().manual_seed(3)
    adapter = torch.randn(2, 8, generator=g), torch.randn(2500, 2, generator=g), 0.5
    for lora in (None, adapter):
        asked = {"selected_ids": IDS, "adapter": lora}
        expected = ll.linear_token_stats(*head, mask=data["mask"], **asked).selected
        right = {"selected": expected}
        for backend in ("auto", "torch") if lora is None else ("auto",):
            alone = ll.linear_policy_loss(**data, spec=spec, **asked, backend=backend)
            check({"selected": alone.selected}, right, torch.float32)
        out, _ = call(data, **asked)
        check({"selected": out.selected}, right, torch.float32)
        arrays = {k: v.numpy() for k, v in data.items()}
        factors = None if lora is None else (*(x.numpy() for x in lora[:2]), lora[2])
        there = ll.linear_policy_loss(
            **arrays, spec=spec, selected_ids=IDS.numpy(), adapter=factors
        )
        np.testing.assert_allclose(there.selected, expected.numpy(), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()

    def f(h: Any, w: Any) -> Any:
        given = {**data, "hidden": h, "weight": w}
        out = ll.linear_policy_loss(**given, spec=spec, selected_ids=IDS)
        return out.loss, out.selected

    leaves = [x.clone().requires_grad_() for x in head[:2]]
    graph = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(graph(*leaves), f(*leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_selected_ids_of_sets_are_refused() -> None:
    data = batch(27)
    sets = ll.SamplingMask.from_lists([[int(t)] for t in data["targets"].flatten()])
    with pytest.raises(ValueError, match="selected_ids must be None with a sampling_mask"):
        ll.linear_policy_loss(**data, spec=ll.presets["dapo"], sampling_mask=sets, selected_ids=IDS)
