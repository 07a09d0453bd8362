"""Distillation of models whose configs do not say what they make of their head's product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.integrations.trl import hooks, install
from logitless.integrations.trl.distillation import asynchronous
from tests.plugins.trl.distillation.heads import KINDS, distillation_trainer, of_logits, with_head
from tests.plugins.trl.distillation.without_servers import TOP, asynchronous_trainer, samples
from tests.plugins.trl.setting import generation, quiet, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
# What rounding leaves of a loss, of logits that reach 30.
NEAR = 5e-6


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_divergence_is_that_of_the_logits(beta: float, kind: str, tmp_path: Path) -> None:
    student, teacher = with_head(kind, 1), with_head(kind, 2)
    made = generation(student)
    with install(), quiet():
        trainer = distillation_trainer(tmp_path, student, teacher, beta)
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, made)
        found = gradients(student, loss)
    s = of_logits(student, made)
    with torch.no_grad():
        t = of_logits(teacher, made)
    p, q = (t, s) if beta == 0 else (s, t)
    mask = made["completion_mask"].bool()
    plain = (p.exp() * (p - q)).sum(-1)[mask].mean()
    expected = gradients(student, plain)
    assert abs(float(loss) - float(plain)) <= NEAR * abs(float(plain))
    assert found.keys() == expected.keys() and found
    for name, x in expected.items():
        assert float((found[name] - x).abs().max()) <= 1e-4 * float(x.abs().max()) + 1e-7, name


def test_an_adapter_on_the_teachers_head(tmp_path: Path) -> None:
    """TRL looks for one on the student's alone, and multiplies with the teacher's base weight."""
    from peft import LoraConfig, get_peft_model

    student, base = with_head("gemma2", 1), with_head("gemma2", 2)
    made = generation(student)
    bare = of_logits(base, made)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    teacher = get_peft_model(base, config).eval()
    with install(), quiet(), torch.no_grad():
        trainer = distillation_trainer(tmp_path, student, teacher, 0.0)
        trainer.model.eval()
        loss = float(trainer.compute_loss(trainer.model, made))
        t, s = (of_logits(x, made) for x in (teacher, student))
    assert (t - bare).abs().max() > 0.1
    expected = float((t.exp() * (t - s)).sum(-1)[made["completion_mask"].bool()].mean())
    assert abs(loss - expected) <= NEAR * expected


def test_each_model_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logitless as ll

    seen, own = [], ll.head_of

    def counted(model: Any) -> Any:
        seen.append(model)
        return own(model)

    monkeypatch.setattr(ll, "head_of", counted)
    student, teacher = with_head("gemma2", 1), with_head("gemma2", 2)
    made = generation(student)
    with install(), quiet():
        trainer = distillation_trainer(tmp_path, student, teacher, 0.5)
        for _ in range(2):
            trainer.compute_loss(trainer.model, made)
    assert [id(x) for x in seen] == [id(student), id(teacher)]


def test_a_model_that_head_of_refuses_is_refused(tmp_path: Path) -> None:
    student = with_head("dory", 1)
    made = generation(student)
    with install(), quiet():
        trainer = distillation_trainer(tmp_path, student, with_head("gemma2", 2), 0.5)
        with pytest.raises(ValueError, match="DoryForCausalLM: its head, a DoryLMHead, gives"):
            trainer.compute_loss(trainer.model, made)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_those_of_the_logits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AsyncDistillation, of one sequence."""
    with_head(kind, 1).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (sample,) = samples(1)
    fields = ("input_ids", "completion_mask", "teacher_topk_ids", "teacher_topk_logprobs")
    inputs = {name: torch.from_numpy(getattr(sample, name))[None] for name in fields}
    length, counted = len(sample.input_ids), float(sample.completion_mask.sum())
    inputs["attention_mask"] = torch.ones(1, length)
    inputs["position_ids"] = torch.arange(length)[None]
    for name in ("global_n_tokens", "global_n_forward_tokens", "mean_seq_len"):
        inputs[name] = torch.tensor([counted])
    with install(), quiet():
        trainer = asynchronous_trainer(tmp_path, 0.0, monkeypatch)
        trainer.model.eval()
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, inputs)
    metrics = trainer._metrics["train"]
    add_tail, divergence = (
        hooks.function(asynchronous.MODULE, *called)
        for called in (asynchronous.TAIL, asynchronous.DIVERGENCE)
    )
    with torch.no_grad():
        logp = trainer.model(input_ids=inputs["input_ids"]).logits[0, :-1].float().log_softmax(-1)
    rows = inputs["completion_mask"][0, 1:].bool()
    ids = inputs["teacher_topk_ids"][0, 1:][rows]
    support = ids != -1
    student, valid = add_tail(
        logp[rows].gather(-1, ids.clamp(min=0)).masked_fill(~support, -torch.inf), support
    )
    teacher, _ = add_tail(inputs["teacher_topk_logprobs"][0, 1:][rows], support)
    assert ids.shape == (counted, TOP + 1)
    jsd = divergence(student, teacher, beta=0.0, support_mask=valid).sum(-1).mean()
    entropy = torch.special.entr(logp[rows].exp()).sum(-1).mean()
    for name, expected in (("jsd", jsd), ("entropy", entropy)):
        assert abs(metrics[name][0] - float(expected)) <= NEAR * (1 + abs(float(expected))), name
