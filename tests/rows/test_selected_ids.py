"""Log-probs of one set of ids in every row, differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from tests.support import cases
from tests.support.heads import problem
from tests.support.tolerances import assert_gradients, assert_values

IDS = torch.tensor([7, 0, 4999, 7, 2048])
N, H, V = 12, 16, 5003


def plain(z: Any, options: dict[str, Any], mask: Any) -> Any:
    """In float64, from full logits."""
    x = z if options.get("bias") is None else z + options["bias"].double()
    x = x * options.get("logit_scale", 1.0)
    cap, t = options.get("softcap"), options.get("temperature", 1.0)
    x = x if cap is None else cap * torch.tanh(x / cap)
    x = x / (t if isinstance(t, float) else t.double()[..., None])
    found = x.log_softmax(-1)[..., IDS]
    return found.masked_fill(~mask[..., None], 0.0)


@pytest.mark.parametrize("kind", cases.CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ["token_stats", "linear_token_stats"])
def test_values_and_gradients(op: str, dtype: torch.dtype, kind: str) -> None:
    h, w, t = problem(3, N, H, V, dtype)
    mask, options = cases.mask(3, N), cases.chain(kind, 3, N, V)
    leaves = [h, w]
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
        leaves.append(options["bias"])
    g = torch.randn(N, len(IDS), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if op == "token_stats":
        out = ll.token_stats(h @ w.t(), t, mask=mask, selected_ids=IDS, **options)
    else:
        out = ll.linear_token_stats(h, w, t, mask=mask, selected_ids=IDS, **options)
    truth = plain(h.double() @ w.double().t(), options, mask)
    assert out.selected.shape == (N, len(IDS)) and out.selected.dtype == out.logp.dtype
    assert_values(out.selected.detach() / 30, truth.detach() / 30, dtype)
    assert (out.selected[~mask] == 0).all()
    ours = torch.autograd.grad((out.selected * g.to(dtype)).sum() + out.entropy.sum(), leaves)
    exact = ll.linear_token_stats(h.double(), w.double(), t, mask=mask, **options).entropy.sum()
    right = torch.autograd.grad((truth * g).sum() + exact, leaves)
    for a, b in zip(ours, right, strict=True):
        assert_gradients(a, b, a.dtype, scale=100 if dtype == torch.float32 else 1000)


def test_the_target_is_logp() -> None:
    h, w, t = problem(4, N, H, V, torch.float32)
    out = ll.linear_token_stats(h, w, t, selected_ids=t)
    torch.testing.assert_close(out.selected.diagonal(), out.logp, rtol=1e-5, atol=1e-5)
    assert ll.linear_token_stats(h, w, t).selected is None


def test_nothing_outside_the_mask_leaks() -> None:
    h, w, t = problem(5, N, H, V, torch.float32)
    mask = cases.mask(5, N)
    found = []
    for fill in (0.0, float("nan")):
        leaf = torch.where(mask[:, None], h.detach(), fill).requires_grad_()
        out = ll.linear_token_stats(leaf, w, t, mask=mask, selected_ids=IDS)
        found.append((out.selected, *torch.autograd.grad(out.selected.sum(), (leaf, w))))
    for a, b in zip(*found, strict=True):
        assert torch.isfinite(b).all() and torch.equal(a, b)


def test_padded_rows_numpy_and_narrow_dtypes() -> None:
    h, w, t = (x.detach() for x in problem(6, N, H, V, torch.float32))
    each = torch.tensor([0.5, 2.0, 1.0])
    padded = {"hidden": h.view(3, 4, H), "weight": w, "targets": t.view(3, 4)}
    out = ll.linear_token_stats(**padded, temperature=each, softcap=9.0, selected_ids=IDS)
    assert out.selected.shape == (3, 4, len(IDS))
    arrays = {k: v.numpy() for k, v in padded.items()}
    there = ll.linear_token_stats(
        **arrays, temperature=each.numpy(), softcap=9.0, selected_ids=IDS.numpy()
    )
    assert there.selected.dtype == np.float32
    np.testing.assert_allclose(there.selected, out.selected.numpy(), rtol=1e-5, atol=1e-5)
    given = ll.token_stats(
        arrays["hidden"] @ arrays["weight"].T, arrays["targets"], temperature=each.numpy(),
        softcap=9.0, selected_ids=IDS.numpy(),
    )  # fmt: skip
    np.testing.assert_allclose(given.selected, out.selected.numpy(), rtol=1e-5, atol=1e-5)
    narrow = ll.linear_token_stats(
        h.bfloat16(), w.bfloat16(), t, selected_ids=IDS, logits_dtype=torch.float32
    )
    exact = plain(h.bfloat16().double() @ w.bfloat16().double().t(), {}, torch.ones(N).bool())
    assert_values(narrow.selected / 10, exact / 10, torch.float32)


def test_what_it_refuses() -> None:
    h, w, t = problem(7, N, H, V, torch.float32)
    with pytest.raises(ValueError, match=r"selected_ids must be in \[0, 5003\), got 5003 at \[1\]"):
        ll.linear_token_stats(h, w, t, selected_ids=torch.tensor([1, V]))


def test_in_a_graph_of_torch_compile() -> None:
    h, w, t = problem(8, N, H, V, torch.float32)
    torch._dynamo.reset()

    def f(h: Any, w: Any) -> Any:
        return ll.linear_token_stats(h, w, t, selected_ids=IDS).selected

    g = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(g(h, w), f(h, w))
