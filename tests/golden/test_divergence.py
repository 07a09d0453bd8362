"""TRL's own divergences of two heads, replayed; tests/golden/make_divergence.py wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402

GOLDEN = json.loads(Path(__file__).with_name("divergence.json").read_text())
# TRL's beta is 0 for KL(teacher || student) and 1 for KL(student || teacher).
KINDS = {0.0: "forward_kl", 1.0: "reverse_kl"}


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_trl_agrees(number: int) -> None:
    case: dict[str, Any] = GOLDEN["cases"][number]
    x = {name: torch.tensor(values) for name, values in GOLDEN["inputs"].items()}
    student = [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    kind = KINDS.get(case["beta"], "jsd")
    scale, softcap, teacher_scale, teacher_softcap = case["chain"]
    out = ll.linear_divergence(
        *student[:2], x["teacher_hidden"], x["teacher_weight"], kind=kind,
        beta=case["beta"] if kind == "jsd" else 0.5, temperature=case["temperature"],
        logit_scale=scale, softcap=softcap, bias=student[2], teacher_logit_scale=teacher_scale,
        teacher_softcap=teacher_softcap, teacher_bias=x["teacher_bias"],
    )  # fmt: skip
    (out.divergence * x["upstream"]).sum().backward()
    found = {"divergence": out.divergence, "entropy": out.entropy}
    found |= {
        f"d{n}": leaf.grad for n, leaf in zip(("hidden", "weight", "bias"), student, strict=True)
    }
    for name, value in found.items():
        assert value is not None
        torch.testing.assert_close(value.detach(), torch.tensor(case[name]), rtol=3e-5, atol=3e-5)


def test_every_kind_was_run() -> None:
    assert {KINDS.get(case["beta"], "jsd") for case in GOLDEN["cases"]} == {
        "forward_kl", "reverse_kl", "jsd",
    }  # fmt: skip
