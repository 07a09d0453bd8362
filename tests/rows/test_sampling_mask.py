"""sampling_mask of given logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from tests.support import cases
from tests.support.mask_cases import KINDS, mask_of, sets
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

FULL = ("kept_mass", "full_logp", "full_entropy")


def run(z: torch.Tensor, t: torch.Tensor, g: Any, **options: Any) -> tuple[ll.TokenStats, Any]:
    leaves = [z.requires_grad_()]
    if options.get("bias") is not None:
        leaves.append(options["bias"].requires_grad_())
    stats = ll.token_stats(z, t, **options)
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return stats, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("chain", cases.CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(kind: str, chain: str, dtype: torch.dtype) -> None:
    n, vocab = 11, 4133
    z, t, mask = cases.logits(3, n, vocab, dtype), cases.targets(3, n, vocab), cases.mask(3, n)
    g, options = cases.upstream(3, n), cases.chain(chain, 3, n, vocab)
    if "bias" in options and dtype == torch.float64:
        # or its gradient would be rounded to float32
        options["bias"] = options["bias"].double()
    ids = sets(kind, 4, t, vocab)
    names = ("g_logp", "g_entropy", "g_lse")
    up = {name: cases.to_numpy(x) for name, x in zip(names, g, strict=True)}
    plain = {"mask": mask.numpy(), **cases.numpy_chain(options)}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), sets=ids, **plain)
    right = reference.token_stats_backward(cases.to_numpy(z), t.numpy(), sets=ids, **up, **plain)
    stats, found = run(
        z, t, g, mask=mask, sampling_mask=ll.SamplingMask.from_lists(ids),
        extras=(*FULL, *EXTRAS), **options,
    )  # fmt: skip
    slack = 1e3 if dtype == torch.float64 else 10
    for name in ("logp", "entropy", "lse"):
        assert_values(getattr(stats, name) / slack, truth[name] / slack, dtype)
    assert (stats.extras["argmax"][mask].numpy() == truth["argmax"][mask.numpy()]).all()
    for name in ("varentropy", "sum_p2", "entropy_change"):
        np.testing.assert_allclose(stats.extras[name], truth[name], rtol=2e-5, atol=2e-5)
    for ours, expected in zip(found, right, strict=False):
        assert_gradients(ours, expected, dtype, scale=100)


def test_extras_of_the_whole_vocabulary() -> None:
    z, t = cases.logits(5, 9, 500, torch.float32), cases.targets(5, 9, 500)
    ids, mask = sets("mixed", 2, t, 500), cases.mask(5, 9)
    stats = ll.token_stats(
        z, t, mask=mask, sampling_mask=ll.SamplingMask.from_lists(ids), extras=FULL
    )
    whole = ll.token_stats(z, t, mask=mask)
    assert_bitwise_equal(stats.extras["full_logp"], whole.logp)
    assert_bitwise_equal(stats.extras["full_entropy"], whole.entropy)
    expected = reference.kept_mass(cases.to_numpy(z), ids) * mask.numpy()
    np.testing.assert_allclose(stats.extras["kept_mass"], expected, rtol=1e-5)
    # what the ratio would be off by
    np.testing.assert_allclose(
        (stats.logp - whole.logp)[mask], -np.log(expected[mask.numpy()]), atol=1e-5
    )


def test_padded_batches_and_strided_rows() -> None:
    """[B, T, V] with rows that others lie between, and [N, V] give the same."""
    wide = cases.logits(6, 12, 701, torch.float32).view(3, 4, 701)
    z, t = wide[:, :-1], cases.targets(6, 9, 701).view(3, 3)
    mask, g = mask_of("mixed", 1, t, 701), [x.view(3, 3) for x in cases.upstream(6, 9)]
    stats, (d,) = run(z.clone(), t, g, sampling_mask=mask)
    strided, (other,) = run(z, t, g, sampling_mask=mask)
    flat, (right,) = run(
        z.reshape(9, 701).clone(), t.view(9), [x.view(9) for x in g], sampling_mask=mask
    )
    for a, b, c in zip(stats[:3], strided[:3], flat[:3], strict=True):
        assert_bitwise_equal(a, b)
        assert_bitwise_equal(a, c.view(3, 3))
    assert_bitwise_equal(d, other)
    assert_bitwise_equal(d.view(9, 701), right)


def test_logits_outside_of_a_set_are_not_looked_at() -> None:
    z, t = cases.logits(7, 4, 90, torch.float32), cases.targets(7, 4, 90)
    mask = mask_of("few", 1, t, 90)
    kept = torch.zeros(4, 90, dtype=torch.bool)
    for i, row in enumerate(mask.lists()):
        kept[i, row] = True
    g = cases.upstream(7, 4)
    stats, (d,) = run(z.clone(), t, g, sampling_mask=mask)
    other, (same,) = run(z.masked_fill(~kept, float("nan")), t, g, sampling_mask=mask)
    for a, b in zip(stats[:3], other[:3], strict=True):
        assert_bitwise_equal(a, b)
    assert_bitwise_equal(d, same)
    assert (d[~kept] == 0).all()


def test_no_graph_of_torch_compile_holds_it() -> None:
    """Its ids are looked at: the graph ends before, and a whole graph is refused."""
    z, t = torch.zeros(2, 5), torch.tensor([1, 2])
    mask = ll.SamplingMask.from_lists([[1, 2], [2]])

    def call(x: torch.Tensor) -> torch.Tensor:
        return ll.token_stats(x, t, sampling_mask=mask).logp

    torch._dynamo.reset()
    with pytest.raises(Exception, match="sampling_mask"):
        torch.compile(call, backend="eager", fullgraph=True)(z)
    torch._dynamo.reset()
    assert_bitwise_equal(torch.compile(call, backend="eager")(z), call(z))


def test_what_another_backend_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from logitless.backends import registry

    bare = replace(registry.get("cpu"), sets=None, absent={"sets": "it has no sets"})
    monkeypatch.setitem(registry.BACKENDS, "cpu", bare)
    z, t = torch.zeros(2, 5), torch.tensor([1, 2])
    mask = ll.SamplingMask.from_lists([[1, 2], [2]])
    words = "sampling_mask is not built for backend 'cpu': it has no sets"
    with pytest.raises(NotImplementedError, match=words):
        ll.token_stats(z, t, sampling_mask=mask)
    with pytest.raises(NotImplementedError, match=words):
        ll.linear_token_stats(z, z, t, sampling_mask=mask)
