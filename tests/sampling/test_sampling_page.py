"""The page about sampling, followed to the letter."""

from __future__ import annotations

import re
import subprocess
import sys

import torch

import logitless as ll
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "sampling.md").read_text("utf-8")


def block(kind: str, name: str) -> str:
    (text,) = re.findall(rf"^```{kind} {re.escape(name)}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(text)


def test_the_replay_prints_what_the_page_says() -> None:
    code = block("python", "replay.py")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == block("text", "replay.py")
    assert run.stdout.count("mean ratio") == 2


def test_siren_prints_what_the_page_says() -> None:
    code = block("python", "siren.py")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == block("text", "siren.py")
    assert run.stdout.count("selected entropy") == 3


def test_the_entropy_of_the_likeliest_tokens_has_plain_torchs_gradient() -> None:
    """And is that of a draw's own set with the drawn token as target: the nucleus, held."""
    torch.manual_seed(3)
    hidden, weight = torch.randn(40, 16).double(), torch.randn(300, 16).double() / 2
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with torch.no_grad():
        drawn = ll.linear_sample(
            hidden, weight, top_p=0.8, seed=0, step=0, row_ids=torch.arange(40)
        )
    sets = drawn.sampling_mask
    drawn_from = ll.linear_token_stats(hidden, weight, drawn.token, sampling_mask=sets).entropy
    found = ll.linear_token_stats(hidden, weight, torch.arange(40), entropy_top_p=0.8).entropy
    assert torch.equal(found, drawn_from)
    logits = hidden @ weight.T
    sorted_p, order = logits.detach().softmax(-1).sort(descending=True)
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept.scatter_(1, order, sorted_p.cumsum(-1) - sorted_p < 0.8)
    q = logits.masked_fill(~kept, -torch.inf).softmax(-1).where(kept, 1.0)
    plain = -(q * q.log()).sum(-1)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    g = torch.randn(40).double()
    ours, theirs = (torch.autograd.grad((x * g).sum(), leaves) for x in (found, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert 1 < kept.sum(1).float().mean() < 200
