"""Plans of the head that a test forces, whatever the shapes."""

from __future__ import annotations

import pytest

import logitless as ll
from logitless.ops.head import plan as plan_module
from logitless.ops.head.cost import Way

LEAVES = ("hidden", "weight")
APART = Way(16, 2048, 2048)
CHUNKS = {"whole": Way(1024, 2048, 0, 24), "tall": Way(4, 2048, 0, 10), "short": Way(5, 2048, 0, 5)}


def force(monkeypatch: pytest.MonkeyPatch, *ways: Way) -> None:
    """Whatever the shapes, one of these."""
    monkeypatch.setattr(plan_module, "_two_pass_ways", lambda *_: [w for w in ways if not w.chunk])
    monkeypatch.setattr(plan_module, "_one_pass_ways", lambda *_: [w for w in ways if w.chunk])


def took_one_pass(out: ll.LinearPolicyLossOutput) -> bool:
    return "linear_policy_loss" in type(out.loss.grad_fn).__name__
