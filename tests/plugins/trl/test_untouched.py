"""What `install()` leaves alone: every other attribute of TRL, and losses that it cannot serve."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.integrations.trl import hooks, install
from logitless.integrations.trl.distillation.replaced import TABLE
from tests.plugins.trl.distillation.distillers import classes, completed, distiller, loss_of, same
from tests.plugins.trl.setting import (
    arguments,
    generation,
    plain_model,
    prompts,
    quiet,
    save_model,
    tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "trl.md"


def trainer_modules() -> list[Any]:
    import trl.experimental
    import trl.trainer

    with quiet():
        return [
            importlib.import_module(item.name)
            for package in (trl.trainer, trl.experimental)
            for item in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if item.name.endswith("_trainer") or item.ispkg
        ]


def trainers() -> dict[str, Any]:
    """Name of a class -> it, of all trainers that this TRL has."""
    return {
        name: kind
        for module in trainer_modules()
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and name.endswith("Trainer") and name[0] != "_"
        if kind.__module__.startswith("trl.")
    }


def attributes() -> dict[tuple[str, str], Any]:
    """(module or class of TRL's, name) -> what it is."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "trl":
            continue
        for key, value in vars(module).items():
            found[name, key] = value
            if inspect.isclass(value) and value.__module__ == name:
                found |= {(f"{name}.{key}", k): v for k, v in vars(value).items()}
    return found


def test_nothing_else_is_replaced() -> None:
    """Modules and classes of TRL, before, while and after it is installed."""
    trainer_modules()
    before = attributes()
    with install():
        during = attributes()
    after = attributes()
    assert before.keys() == during.keys() == after.keys()
    assert all(after[place] is before[place] for place in before)
    changed = {place for place in before if during[place] is not before[place]}
    in_table = {
        (".".join((row.module, *row.name.split(".")[:-1])), row.name.split(".")[-1])
        for row in TABLE
    }
    assert in_table <= changed
    assert {name for _, name in changed - in_table} == {hooks.HEAD}
    holders = {module for module, name in changed if name == hooks.HEAD}
    assert {*hooks.TRAINERS, "trl.experimental.async_grpo.async_grpo_trainer"} <= holders


def test_the_page_names_every_trainer() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    named = " ".join(line.split("|")[1] for line in rows)
    missing = {name for name in trainers() if f"`{name}`" not in named}
    assert not missing, f"docs/trl.md has no row for {sorted(missing)}"
    assert len(trainers()) >= 20


def test_experimental_namesakes_are_of_the_same_trainers() -> None:
    import trl

    of = {"distillation": "Distillation", "kto": "KTO", "bema_for_ref_model": "DPO"}
    with quiet():
        for module, name in of.items():
            kind = getattr(importlib.import_module(f"trl.experimental.{module}"), f"{name}Trainer")
            assert issubclass(kind, getattr(trl, f"{name}Trainer"))
    assert issubclass(trainers()["GMPOTrainer"], trl.GRPOTrainer)


class Teacher:
    """A server's answers, made up: log-probs of the likeliest tokens and of the actual ones."""

    def __init__(self, *given: Any, **more: Any) -> None: ...

    def get_sequence_logprobs(
        self, sequences: Any, prompt_lengths: Any, top_logprobs: int, **more: Any
    ) -> dict[str, Any]:
        out: dict[str, Any] = {"logprobs": [], "logprob_token_ids": [], "actual_logprobs": []}
        for ids, start in zip(sequences, prompt_lengths, strict=True):
            g = torch.Generator().manual_seed(sum(ids))
            logp = torch.randn(len(ids) - start, 211, generator=g).log_softmax(-1)
            best = logp.topk(top_logprobs)
            actual = logp.gather(-1, torch.tensor(ids[start:])[:, None])
            out["logprobs"].append(best.values.tolist())
            out["logprob_token_ids"].append(best.indices.tolist())
            out["actual_logprobs"].append(actual.tolist())
        return out


@pytest.mark.parametrize(("beta", "top"), [(0.0, 4), (0.5, 1), (1.0, 1)])
def test_a_teacher_on_a_server(
    beta: float, top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.generation.vllm_client.VLLMClient", Teacher)
    folder = save_model(tmp_path)
    kind, config = classes("server_distillation")
    with quiet():
        args = arguments(
            config, folder, beta=beta, loss_top_k=top, teacher_model_server_url="http://nowhere",
            max_completion_length=9,
        )  # fmt: skip
        trainer = kind(
            model=plain_model(folder), args=args, train_dataset=prompts(8),
            processing_class=tokenizer(),
        )  # fmt: skip
    same(lambda: loss_of(trainer, generation(trainer.model)))


@pytest.mark.parametrize("mode", ["sampled_token", "topk_logits"])
@pytest.mark.parametrize("kind", ["sdft", "sdpo"])
def test_self_distillation_on_a_server(kind: str, mode: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    args = {"distillation_mode": mode, "distillation_topk": 4, "distillation_alpha": 1.0}
    if mode == "sampled_token":
        args["distillation_topk"] = None
    trainer = distiller(kind, folder, folder, **args)
    # what asks for vLLM when it is made
    trainer.use_teacher_server, trainer.teacher_client = True, Teacher()
    trainer._last_loaded_step = trainer.state.global_step
    same(lambda: loss_of(trainer, completed(trainer.model)))
