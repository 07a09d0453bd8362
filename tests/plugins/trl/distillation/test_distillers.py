"""TRL's experimental distillation trainers: one micro-batch and steps, with and without us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from logitless.integrations.trl import install
from tests.plugins.trl.distillation.distillers import batch_of, distiller, loss_of, same
from tests.plugins.trl.setting import differences, distance, plain_model, save_model
from tests.plugins.trl.whole import largest, trained

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3


class Case(NamedTuple):
    kind: str
    args: dict[str, Any]
    # of the student's model
    model: dict[str, Any]


def case(kind: str, model: dict[str, Any] | None = None, **args: Any) -> Case:
    return Case(kind, args, model or {})


def jsd(beta: float, top: int = 0, **args: Any) -> dict[str, Any]:
    return {"distillation_objective": "jsd", "beta": beta, "loss_top_k": top, **args}


def mode(name: str, alpha: float = 0.5, top: int | None = None, **args: Any) -> dict[str, Any]:
    given = {"distillation_mode": name, "distillation_alpha": alpha, "distillation_topk": top}
    return {**given, **args}


CAPPED = {"kind": "Gemma2", "final_logit_softcapping": 3.0}
SCALED = {"kind": "Cohere", "logit_scale": 0.5}
SERVED = {
    "gkd, forward": case("gkd", beta=0.0),
    "gkd, jsd": case("gkd", beta=0.3),
    "gkd, reverse, softcap": case("gkd", CAPPED, beta=1.0),
    "gold": case("gold", beta=0.5, temperature=0.7),
    "gold, scale": case("gold", SCALED, beta=1.0),
    "iw_opd, jsd": case("iw_opd", **jsd(0.5, temperature=0.8)),
    "iw_opd, reverse, tied": case(
        "iw_opd", {"tie_word_embeddings": True, "spread": 0.2}, **jsd(1.0)
    ),
    "sdft, full": case("sdft", **mode("full_logits", temperature=0.7)),
    "sdft, full, softcap": case("sdft", CAPPED, **mode("full_logits", 0.0)),
    "sdft, top-k": case("sdft", **mode("topk_logits", 0.5, 7, temperature=0.7)),
    "sdft, top-k and tail": case(
        "sdft", CAPPED, **mode("topk_logits", 0.3, 7, distillation_add_tail=True)
    ),
    "sdft, sampled": case("sdft", **mode("sampled_token", 1.0)),
    "sdpo, full": case("sdpo", **mode("full_logits", 1.0)),
    "sdpo, top-k, half": case("sdpo", **mode("topk_logits", 0.5, 5, distillation_weight=0.5)),
    "sdpo, policy": case("sdpo", distillation_weight=0.0),
}


def folders(path: Path, model: dict[str, Any]) -> tuple[Path, Path]:
    """Student, and a teacher of another width."""
    return save_model(path / "student", **model), save_model(
        path / "teacher", hidden_size=64, spread=0.7
    )


@contextlib.contextmanager
def without_products(*models: Any) -> Iterator[None]:
    """Heads whose product is an error."""

    def product(hidden: Any) -> Any:
        raise AssertionError("logits of the whole vocabulary were made")

    layers = [model.get_output_embeddings() for model in models]
    for layer in layers:
        layer.forward = product
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def models_of(trainer: Any) -> list[Any]:
    found = [trainer.model, getattr(trainer, "teacher_model", None)]
    return [model for i, model in enumerate(found) if model is not None and model not in found[:i]]


@pytest.mark.parametrize("name", SERVED)
def test_one_micro_batch(name: str, tmp_path: Path) -> None:
    kind, args, model = SERVED[name]
    trainer = distiller(kind, *folders(tmp_path, model), **args)
    inputs = batch_of(kind, trainer)
    items = {} if kind in ("sdft", "sdpo") else {"num_items_in_batch": torch.tensor(23)}
    theirs = loss_of(trainer, inputs, **items)
    with install():
        # the first call measures the head
        loss_of(trainer, inputs, **items)
        with without_products(*models_of(trainer)):
            ours = loss_of(trainer, inputs, **items)
    again = loss_of(trainer, inputs, **items)
    off = differences(theirs, ours)
    assert off["loss"] <= 5e-6 and off["gradient"] <= 1e-5 and off["metrics"] <= 5e-6, off
    assert theirs.loss != 0 and again.loss == theirs.loss
    assert theirs.metrics.keys() == ours.metrics.keys()
    assert all(torch.equal(x, theirs.gradients[k]) for k, x in again.gradients.items())


TRAINED = {
    "gkd": case("gkd", lmbda=1.0, beta=0.5),
    "gold": case("gold", lmbda=0.0, beta=0.5),
    "iw_opd": case("iw_opd", lmbda=1.0, **jsd(0.5)),
    "sdft": case("sdft", **mode("topk_logits", 0.5, 20)),
    "sdpo": case("sdpo", **mode("full_logits")),
}


@pytest.mark.parametrize("name", TRAINED)
def test_steps_of_training(name: str, tmp_path: Path) -> None:
    kind, args, _ = TRAINED[name]
    student, teacher = folders(tmp_path, {})
    found = []
    for ours in (False, True):
        with install() if ours else contextlib.nullcontext():
            trainer = distiller(kind, student, teacher, max_steps=STEPS, learning_rate=2e-4, **args)
            found.append(trained(trainer))
    theirs, with_us = found
    assert len(theirs.logs) == STEPS + 1
    off = largest(theirs, with_us)
    assert off["loss"] <= 1e-4, off
    assert all(x <= 1e-2 for x in off.values()), off
    start = plain_model(student)
    assert any((p != theirs.parameters[k]).any() for k, p in start.named_parameters())


LORA = {"r": 3, "lora_alpha": 6, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gkd, jsd", []),
        ("iw_opd, jsd", ["lm_head"]),
        ("sdft, full", ["lm_head"]),
        ("sdft, top-k and tail", ["lm_head"]),
    ],
)
def test_adapters(name: str, more: list[str], tmp_path: Path) -> None:
    """Of the body, and of the head, whose teacher is the model without it."""
    from peft import LoraConfig

    kind, args, model = SERVED[name]
    lora = LoraConfig(**{**LORA, "target_modules": [*LORA["target_modules"], *more]})
    trainer = distiller(kind, *folders(tmp_path, model), given={"peft_config": lora}, **args)
    inputs = batch_of(kind, trainer)
    theirs = loss_of(trainer, inputs)
    with install():
        ours = loss_of(trainer, inputs)
    off = differences(theirs, ours)
    assert off["loss"] <= 5e-6 and off["gradient"] <= 2e-5, off
    assert all("lora" in k for k in ours.gradients)
    assert any("lm_head" in k for k in ours.gradients) == bool(more)


@pytest.mark.parametrize("name", ["gkd, jsd", "gold", "sdft, full", "sdft, top-k", "sdpo, full"])
def test_autocast_is_as_far_from_thirty_two_bits(name: str, tmp_path: Path) -> None:
    kind, args, model = SERVED[name]
    both = folders(tmp_path, model)
    exact = distiller(kind, *both, **args)
    inputs = batch_of(kind, exact)
    right = loss_of(exact, inputs)
    trainer = distiller(kind, *both, **{**args, "bf16": True})
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    theirs = loss_of(trainer, inputs)
    with install():
        ours = loss_of(trainer, inputs)
    near, far = (abs(run.loss - right.loss) for run in (ours, theirs))
    assert near <= 2 * far + 2e-2 * abs(right.loss)
    near, far = (distance(right, run) for run in (ours, theirs))
    assert near <= 1.5 * far + 2e-2 and far > 1e-4, (near, far)


UNTOUCHED = {
    "iw_opd": case("iw_opd", distillation_objective="iw_opd", lmbda=1.0),
    "iw_opd, top 1": case("iw_opd", **jsd(0.5, 1)),
    "iw_opd, top 5": case("iw_opd", **jsd(0.5, 5)),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_stays_as_it_is(name: str, tmp_path: Path) -> None:
    kind, args, _ = UNTOUCHED[name]
    trainer = distiller(kind, *folders(tmp_path, {}), **args)
    inputs = batch_of(kind, trainer)
    same(lambda: loss_of(trainer, inputs))


def test_outputs_have_logits(tmp_path: Path) -> None:
    """As an evaluation with metrics of logits asks for them."""
    trainer = distiller("gkd", *folders(tmp_path, {}))
    inputs = batch_of("gkd", trainer)
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    with install():
        ours, with_us = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert loss == ours and torch.equal(outputs.logits, with_us.logits)


def test_a_budget_of_the_divergence(tmp_path: Path) -> None:
    trainer = distiller("gkd", *folders(tmp_path, {}))
    inputs = batch_of("gkd", trainer)
    theirs = loss_of(trainer, inputs)
    with install(memory_budget=1 << 20):
        off = differences(theirs, loss_of(trainer, inputs))
    assert off["loss"] <= 2e-6 and off["gradient"] <= 1e-5


def test_a_loss_that_meets_states_elsewhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer whose method does not ask for the divergence would take states for logits."""
    trainer = distiller("gkd", *folders(tmp_path, {}))

    def other(student_logits: Any, teacher_logits: Any, **more: Any) -> Any:
        return (student_logits - student_logits.detach()).sum()

    with install():
        monkeypatch.setattr(trainer, "generalized_jsd_loss", other, raising=False)
        with pytest.raises(ImportError, match=r"GKDTrainer.compute_loss in trl .* and found 0"):
            trainer.compute_loss(trainer.model, batch_of("gkd", trainer))
