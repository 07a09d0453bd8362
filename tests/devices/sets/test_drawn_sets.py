"""Sets of tokens that a device has drawn from: scored as they were drawn, and their entropies."""

from __future__ import annotations

import pytest
import torch

import logitless as ll
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.device.draws import drawing_there


@pytest.mark.parametrize("top_p", [0.05, 0.9])
def test_an_entropy_of_the_likeliest(device: Device, top_p: float) -> None:
    """The CPU's values and gradients of logits that no order of additions changes."""
    g = torch.Generator().manual_seed(3)
    vocab = device.fewer(1301)
    h, w = (torch.randint(-3, 4, (n, 8), generator=g).float() for n in (9, vocab))
    t, mask = cases.targets(3, 9, vocab), cases.mask(3, 9)
    temperature = torch.linspace(0.5, 2, 9)
    found = []
    for where in (Device("cpu", "cpu"), device):
        leaves = [x.requires_grad_() for x in where.put(h, w)]
        stats = ll.linear_token_stats(
            *leaves, t.to(where.name), mask=mask.to(where.name), entropy_top_p=top_p,
            temperature=temperature.to(where.name), backend=where.backend,
        )  # fmt: skip
        both = torch.autograd.grad((stats.entropy - stats.logp).sum(), leaves)
        found.append([stats.entropy.detach().cpu(), *(x.cpu() for x in both)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_what_was_drawn_is_scored_as_it_was_drawn(device: Device) -> None:
    g = torch.Generator().manual_seed(6)
    there_now = device.put(*(torch.randn(n, 24, generator=g) for n in (9, 1301)))
    with drawing_there(device):
        drawn = ll.linear_sample(
            *there_now, seed=1, step=2, row_ids=torch.arange(9, device=device.name), top_p=0.7
        )
    mask = drawn.sampling_mask
    stats = ll.linear_token_stats(
        *there_now, drawn.token, sampling_mask=mask, backend=device.backend
    )
    torch.testing.assert_close(stats.logp, drawn.kept_logp, rtol=1e-5, atol=1e-5)
    assert mask.token_ids.device == there_now[0].device
