"""inplace_backward=True: the right gradient, or an error where somebody else needs the memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import logitless as ll
from logitless.ops.rows.overwrite import overlapping
from tests.support.tolerances import assert_bitwise_equal, assert_gradients

N, V = 4, 33
TARGETS = torch.tensor([1, 5, 9, 20])
MODIFIED = "modified by an inplace operation"
LossOf = Callable[[torch.Tensor, Any], torch.Tensor]


def gradient_of(
    make: LossOf, inplace: bool, backend: str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """d loss / d a leaf that `make` turns into a loss with the help of token_stats."""
    leaf = torch.randn(N, V, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()

    def stats(logits: torch.Tensor, **options: Any) -> torch.Tensor:
        targets = TARGETS.view(logits.shape[:-1])
        found = ll.token_stats(
            logits, targets, inplace_backward=inplace, backend=backend, **options
        )
        return (found.logp * (targets + 1)).sum() + found.entropy.sum()

    make(leaf, stats).backward()
    return leaf.grad


def two_calls(z: torch.Tensor, stats: Any) -> torch.Tensor:
    return stats(z) + stats(z, temperature=0.5)


def padded(leaf: torch.Tensor) -> torch.Tensor:
    return torch.cat([leaf, leaf], 1)


# Somebody has saved the memory and needs it after it was written to.
NEEDED: dict[str, LossOf] = {
    "tanh": lambda w, s: s(w.tanh()),
    "exp": lambda w, s: s(w.exp()),
    "sigmoid": lambda w, s: s(w.sigmoid()),
    "relu": lambda w, s: s(w.relu()),
    "softmax": lambda w, s: s(w.softmax(-1)),
    "log_softmax": lambda w, s: s(w.log_softmax(-1)),
    "sqrt": lambda w, s: s((w * w + 1).sqrt()),
    "square beside": lambda w, s: (lambda z: (z * z).sum() + s(z))(w * 2),
    "norm beside": lambda w, s: (lambda z: z.norm() + s(z))(w * 2),
    "product with weights": lambda w, s: (lambda z: (z @ torch.ones(V, 2, requires_grad=True))
                                          .sum() + s(z))(w * 2),
    "two calls": lambda w, s: two_calls(w * 2, s),
    "two calls on a view": lambda w, s: (lambda z: s(z.view(2, 2, V)) + s(z))(w * 2),
    "the whole of a view": lambda w, s: (lambda z: (z**2).sum() + s(z[:, :V]))(padded(w)),
    "a saved output seen through a view": lambda w, s: s(padded(w).tanh()[:, 2 : V + 2]),
    "detached": lambda w, s: (lambda z: z.square().sum() + s(z.detach().requires_grad_()))(w * 2),
    "a leaf": lambda w, s: (w * w).sum() + s(w),
    "two calls on a leaf": two_calls,
    "a view of a leaf": lambda w, s: (w * w).sum() + s(w.view(2, 2, V)),
}  # fmt: skip

# Nobody does, or before it is written to.
FREE: dict[str, LossOf] = {
    "scaled": lambda w, s: s(w * 2),
    "product": lambda w, s: s(w @ torch.eye(V, dtype=w.dtype)),
    "cast": lambda w, s: s(w.double().float()),
    "shifted": lambda w, s: s((w + 1).view(2, 2, V)),
    "every other row": lambda w, s: s(torch.stack([w, w], 1)[:, 0]),
    "padded vocabulary": lambda w, s: s(padded(w)[:, :V]),
    "columns": lambda w, s: s(w.t().contiguous().t()),
    "one row for all": lambda w, s: s((w * 2)[:, :1].expand(N, V)),
    "a leaf": lambda w, s: s(w),
    "a view of a leaf": lambda w, s: s(w.view(2, 2, V)),
    "a sum beside": lambda w, s: (lambda z: z.sum() + s(z))(w * 2),
    "a leaf and a sum": lambda w, s: w.sum() + s(w),
    "saved later, used earlier": lambda w, s: (lambda z: s(z) + (z * z).sum())(w * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_who_still_needs_the_logits_raises(name: str) -> None:
    assert gradient_of(NEEDED[name], False).isfinite().all()
    with pytest.raises(RuntimeError, match=MODIFIED):
        gradient_of(NEEDED[name], True)
    assert_bitwise_equal(
        gradient_of(NEEDED[name], True, "torch"), gradient_of(NEEDED[name], False, "torch")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FREE)
def test_where_nobody_does_the_gradient_is_the_same(name: str, dtype: torch.dtype) -> None:
    assert_bitwise_equal(
        gradient_of(FREE[name], True, dtype=dtype), gradient_of(FREE[name], False, dtype=dtype)
    )


def test_a_leaf_gets_its_gradient_in_its_own_memory() -> None:
    z = torch.randn(N, V)
    separate = z.clone().requires_grad_()
    ll.token_stats(separate, TARGETS).logp.sum().backward()
    leaf = z.clone().requires_grad_()
    version = leaf._version
    ll.token_stats(leaf, TARGETS, inplace_backward=True).logp.sum().backward()
    assert leaf._version > version
    assert leaf.grad.data_ptr() == leaf.data_ptr()
    assert not leaf.grad.requires_grad
    assert_bitwise_equal(leaf.grad, separate.grad)
    # a second gradient would be added to itself
    with pytest.raises(ValueError, match=r"\.grad still holds that of an earlier call"):
        ll.token_stats(leaf.view(2, 2, V), TARGETS.view(2, 2), inplace_backward=True)
    leaf.grad = None
    with torch.no_grad():
        leaf.copy_(z)
    ll.token_stats(leaf, TARGETS, inplace_backward=True).logp.sum().backward()
    assert_bitwise_equal(leaf.grad, separate.grad)


def test_a_gradient_in_other_memory_is_added_to() -> None:
    z = torch.randn(N, V)
    expected = (
        torch.ones(N, V)
        + torch.autograd.grad(
            (lambda x: ll.token_stats(x, TARGETS).logp.sum())(z.requires_grad_()), z
        )[0]
    )
    leaf = z.detach().clone().requires_grad_()
    leaf.sum().backward()
    ll.token_stats(leaf, TARGETS, inplace_backward=True).logp.sum().backward()
    assert_bitwise_equal(leaf.grad, expected)


REFUSED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "expanded": (
        lambda: torch.randn(1, V).expand(N, V),
        rf"got shape \[{N}, {V}\] with strides \[0, 1\]",
    ),
    "expanded leaf": (lambda: torch.randn(1, V, requires_grad=True).expand(N, V), "strides"),
    "windows": (lambda: torch.randn(99).as_strided((N, V), (7, 1)), r"strides \[7, 1\]"),
    "sequences": (lambda: torch.randn(1, 2, V).expand(2, 2, V), r"strides \[0, 33, 1\]"),
    "parameter": (lambda: torch.nn.Parameter(torch.randn(N, V)), "a parameter"),
    "view of a parameter": (lambda: torch.nn.Parameter(torch.randn(N, V))[:], "a parameter"),
}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name: str, backend: str) -> None:
    make, message = REFUSED[name]
    logits = make()
    targets = TARGETS.view(2, 2) if logits.dim() == 3 else TARGETS
    with pytest.raises(ValueError, match="token_stats: inplace_backward=True") as error:
        ll.token_stats(logits, targets, inplace_backward=True, backend=backend)
    assert error.match(message)
    assert ll.token_stats(logits, targets, backend=backend).logp.isfinite().all()


def test_a_bias_in_the_memory_of_the_logits_is_refused() -> None:
    memory = torch.randn(N + 1, V)
    with pytest.raises(ValueError, match="of which bias is a view"):
        ll.token_stats(memory[1:], TARGETS, bias=memory[0], inplace_backward=True)


def test_overlapping_by_exhaustion() -> None:
    """Against the places themselves, for every small [B, T, V] and all its strides."""
    seen = set()
    for b, t, v in itertools.product((0, 1, 2, 3), (1, 2, 3), (1, 2, 3)):
        for first, second in itertools.product(range(9), repeat=2):
            places = np.add.outer(
                np.add.outer(np.arange(b) * first, np.arange(t) * second), np.arange(v)
            )
            right = len(np.unique(places)) < places.size
            assert overlapping((b, t, v), (first, second, 1)) == right, (b, t, v, first, second)
            seen.add(right)
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["tanh", "two calls", "square beside"])
def test_hooks_for_saved_tensors_get_a_new_gradient(name: str) -> None:
    """They may hand one tensor to several nodes, and torch looks at no versions there."""
    expected = gradient_of(NEEDED[name], False)

    def run(inside: Callable[[LossOf], LossOf]) -> torch.Tensor:
        return gradient_of(inside(NEEDED[name]), True)

    def hooked(make: LossOf) -> LossOf:
        def loss(w: torch.Tensor, s: Any) -> torch.Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                return make(w, s)

        return loss

    def offloaded(make: LossOf) -> LossOf:
        def loss(w: torch.Tensor, s: Any) -> torch.Tensor:
            with torch.autograd.graph.save_on_cpu():
                return make(w, s)

        return loss

    for way in (
        hooked,
        offloaded,
        lambda make: lambda w, s: checkpoint(make, w, s, use_reentrant=False),
    ):
        assert_bitwise_equal(run(way), expected)


@pytest.mark.parametrize("name", ["tanh", "two calls", "a leaf"])
def test_reentrant_checkpoints_are_graphs_of_their_own(name: str) -> None:
    with pytest.raises(RuntimeError, match=MODIFIED):
        gradient_of(lambda w, s: checkpoint(NEEDED[name], w, s, use_reentrant=True), True)
    assert_bitwise_equal(
        gradient_of(lambda w, s: checkpoint(FREE["scaled"], w, s, use_reentrant=True), True),
        gradient_of(FREE["scaled"], False),
    )


@pytest.mark.parametrize("name", ["tanh", "two calls", "a leaf", "the whole of a view"])
def test_compiled_graphs_get_a_new_gradient(name: str) -> None:
    torch._dynamo.reset()

    def compiled(w: torch.Tensor, s: Any) -> torch.Tensor:
        return torch.compile(NEEDED[name], fullgraph=True, backend="aot_eager")(w, s)

    assert_gradients(gradient_of(compiled, True), gradient_of(NEEDED[name], False), torch.float32)


# torch's tracer looks at .grad of every input
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_graph_among_others() -> None:
    """Logits that somebody outside of the graph has saved."""
    torch._dynamo.reset()
    graph = torch.compile(lambda z, s: s(z), fullgraph=True, backend="aot_eager")
    assert_gradients(
        gradient_of(lambda w, s: graph(w.tanh(), s), True),
        gradient_of(NEEDED["tanh"], False),
        torch.float32,
    )
