"""Memory that is used again from call to call: never by two at once, and handed back when asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import _core
from logitless.backends.memory import SMALLEST, buffer, buffer_like

LIKE = torch.empty(0)
FLOATS = SMALLEST // 4


@pytest.fixture(autouse=True)
def nothing_spare() -> Iterator[None]:
    ll.release_memory()
    yield
    ll.release_memory()


def test_a_buffer_finds_the_memory_of_the_last_one() -> None:
    first = buffer(2 * FLOATS, torch.float32, LIKE)
    place = first.data_ptr()
    first.fill_(7)
    del first
    assert _core.runtime.spare_bytes() == 2 * SMALLEST
    again = buffer(3 * FLOATS + 5, torch.bfloat16, LIKE)
    assert again.data_ptr() == place
    assert (again.dtype, again.shape) == (torch.bfloat16, (3 * FLOATS + 5,))
    assert _core.runtime.spare_bytes() == 0


def test_memory_in_use_is_nobody_elses() -> None:
    one, other = (buffer(FLOATS, torch.float32, LIKE) for _ in range(2))
    assert one.data_ptr() != other.data_ptr()
    part = one[5:]
    del one
    third = buffer(FLOATS, torch.float32, LIKE)
    part.fill_(1)
    third.fill_(2)
    assert bool((part == 1).all()), "a view did not hold its memory"


@pytest.mark.parametrize(("held", "wanted", "same"), [(1, 1, 1), (2, 1, 1), (3, 1, 0), (1, 2, 0)])
def test_a_block_serves_what_is_at_least_half_its_size(held: int, wanted: int, same: int) -> None:
    first = buffer(held * FLOATS, torch.float32, LIKE)
    place = first.data_ptr()
    del first
    again = buffer(wanted * FLOATS, torch.float32, LIKE)
    assert (_core.runtime.spare_bytes() == 0) == bool(same)
    assert not same or again.data_ptr() == place


def test_few_blocks_wait_and_all_are_handed_back_when_asked() -> None:
    held = [buffer(FLOATS, torch.float32, LIKE) for _ in range(6)]
    used = buffer(FLOATS, torch.float32, LIKE).fill_(3)
    held.clear()
    assert _core.runtime.spare_bytes() == 4 * SMALLEST
    assert ll.release_memory() == 4 * SMALLEST
    assert _core.runtime.spare_bytes() == 0 == ll.release_memory()
    assert bool((used == 3).all())


def test_small_and_strided_tensors_are_torchs() -> None:
    buffer(FLOATS - 1, torch.float32, LIKE)
    turned = torch.zeros(FLOATS // 512, 1024).t()
    assert buffer_like(turned).stride() == turned.stride()
    assert _core.runtime.spare_bytes() == 0
    assert buffer_like(turned.t(), torch.float64).shape == (FLOATS // 512, 1024)
    assert _core.runtime.spare_bytes() == 2 * 2 * SMALLEST


def test_threads_do_not_meet_in_one_block() -> None:
    wrong: list[int] = []

    def work(name: int) -> None:
        for _ in range(50):
            mine = buffer(FLOATS, torch.float32, LIKE)
            mine[::4096] = name
            if not bool((mine[::4096] == name).all()):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forwards_that_wait_for_their_backwards_keep_their_own_logits() -> None:
    torch.manual_seed(0)
    n, width, vocab = 200, 512, 20_000
    hidden = torch.randn(2, n, width, requires_grad=True)
    weight = (torch.randn(vocab, width) / width**0.5).requires_grad_()
    targets = torch.randint(0, vocab, (n,))

    def loss(i: int) -> torch.Tensor:
        stats = ll.linear_token_stats(hidden[i], weight, targets, memory_budget="1GiB")
        return stats.logp.sum() + stats.entropy.sum()

    def gradients(*losses: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum(losses[1:], losses[0]), (hidden, weight))

    apart = [gradients(loss(i)) for i in range(2)]
    together = gradients(*[loss(i) for i in range(2)])
    torch.testing.assert_close(together[0], apart[0][0] + apart[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1], apart[0][1] + apart[1][1], rtol=0, atol=1e-5)
    before = apart[0][1].clone()
    loss(0).backward()
    assert torch.equal(apart[0][1], before), "a gradient that somebody holds was written to"


HOLDERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "itself": lambda g: g,
    "view": lambda g: g[-1:, 3:],
    "detached": lambda g: g.detach(),
    "data": lambda g: g.data,
    "storage": lambda g: g.untyped_storage(),
    "numpy": lambda g: g.numpy(),
    "view of numpy": lambda g: g.numpy().reshape(-1)[-5:],
    "dlpack": lambda g: np.from_dlpack(g),
    "memoryview": lambda g: memoryview(g.numpy()),
    "shared": lambda g: g.share_memory_()[1:],
}


def bytes_of(held: Any) -> bytes:
    if isinstance(held, torch.UntypedStorage):
        held = torch.tensor([], dtype=torch.uint8).set_(held)
    return bytes(np.ascontiguousarray(held).tobytes())


def rows_gradient(seed: int) -> torch.Tensor:  # [2, FLOATS]
    torch.manual_seed(seed)
    z = torch.randn(2, FLOATS, requires_grad=True)
    ll.token_stats(z, torch.tensor([1, 2])).logp.sum().backward()
    return z.grad


def head_gradient(seed: int, *, one_pass: bool) -> torch.Tensor:
    """d_weight of the two ways that a head has."""
    torch.manual_seed(seed)
    n, width, vocab = 8, 128, FLOATS // 64
    hidden, weight = torch.randn(n, width), torch.randn(vocab, width, requires_grad=True)
    targets, zero = torch.arange(n), torch.zeros(n)
    if one_pass:
        ll.linear_policy_loss(
            hidden, weight, targets, zero - 5, zero + 1, zero == 0, ll.presets["reinforce"]
        ).loss.backward()
    else:
        ll.linear_token_stats(hidden, weight, targets).logp.sum().backward()
    return weight.grad


MAKERS: dict[str, Callable[[int], torch.Tensor]] = {
    "token_stats": rows_gradient,
    "linear_token_stats": lambda seed: head_gradient(seed, one_pass=False),
    "linear_policy_loss": lambda seed: head_gradient(seed, one_pass=True),
}


@pytest.mark.parametrize(
    ("maker", "holder"),
    [
        *(("token_stats", holder) for holder in HOLDERS),
        ("linear_token_stats", "view"),
        ("linear_policy_loss", "numpy"),
    ],
)
def test_a_gradient_that_anybody_sees_is_left_alone(maker: str, holder: str) -> None:
    held = HOLDERS[holder](MAKERS[maker](0))
    before = bytes_of(held)
    for seed in (1, 2):
        other = MAKERS[maker](seed)
        assert bytes_of(held) == before, f"the gradient of call {seed} is in it"
        del other
    del held
    assert _core.runtime.spare_bytes() > 0


@pytest.mark.parametrize("maker", MAKERS)
def test_a_gradient_that_nobody_sees_is_the_next_ones_memory(maker: str) -> None:
    first = MAKERS[maker](0)
    place, values = first.data_ptr(), first.clone()
    del first
    again = MAKERS[maker](0)
    assert again.data_ptr() == place
    assert torch.equal(again, values)


def test_accumulated_and_zeroed_gradients_keep_their_memory() -> None:
    """zero_grad(set_to_none=False), micro-batches, a hook that keeps what it is shown."""
    seen: list[torch.Tensor] = []
    z, t = torch.randn(2, FLOATS), torch.tensor([1, 2])
    logits = torch.nn.Parameter(z)
    logits.register_hook(seen.append)
    right = torch.autograd.grad(ll.token_stats(logits, t).logp.sum(), logits)[0].clone()
    for _ in range(3):
        ll.token_stats(logits, t).logp.sum().backward()
    assert all(torch.equal(g, right) for g in (seen[0], seen[2], seen[3]))
    torch.testing.assert_close(logits.grad, 3 * right, rtol=1e-6, atol=0)
    logits.grad.zero_()
    ll.token_stats(logits, t).logp.sum().backward()
    assert torch.equal(logits.grad, right)
