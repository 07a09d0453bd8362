"""Optimizer steps of verl's engine, as it is and with this library; and verl finding it alone."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.verl.engines import (
    actor_config,
    data,
    engine,
    off_policy,
    ppo_loss,
    prepared,
    save_model,
    scored,
)

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 8


def trained(made: Any, td: Any, mode: str) -> list[dict[str, float]]:
    loss = functools.partial(ppo_loss, config=actor_config(mode))
    logs = []
    for _ in range(STEPS):
        out = made.train_batch(prepared(made, td, 2), loss)
        made.lr_scheduler_step()
        metrics = out["metrics"]
        logs.append(
            {
                "loss": sum(out["loss"]),
                "grad_norm": float(metrics["grad_norm"]),
                "ppo_kl": float(metrics["actor/ppo_kl"].aggregate()),
            }
        )
    return logs


@pytest.mark.parametrize("mode", ["vanilla", "logitless/ppo_dual_clip"])
def test_eight_steps(mode: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, tie_word_embeddings=False)
    theirs, mine = engine(folder, None), engine(folder, "logitless")
    td = data()
    td = off_policy(td, scored(theirs, td)["log_probs"])
    a, b = trained(theirs, td, "vanilla"), trained(mine, td, mode)
    assert a[-1]["loss"] < a[0]["loss"] - 1e-3
    for x, y in zip(a, b, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], abs=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-4)
        assert y["ppo_kl"] == pytest.approx(x["ppo_kl"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [
        {},
        {
            "VERL_USE_EXTERNAL_PLUGINS": "none",
            "VERL_USE_EXTERNAL_MODULES": "logitless.integrations.verl",
        },
    ],
    ids=["entry point", "module"],
)
def test_verl_finds_it(ways: dict[str, str]) -> None:
    code = (
        "import verl.trainer.ppo.core_algos as c, verl.models.transformers.monkey_patch as m\n"
        "import verl.workers.engine.base as b\n"
        "assert 'logitless/ppo' in c.POLICY_LOSS_REGISTRY\n"
        "assert m.patch_forward_with_backends.__module__ == m.__name__\n"
        "assert m.patch_forward_with_backends.__wrapped__\n"
        "kind = b.EngineRegistry._engines['language_model']['fsdp2']['cuda']\n"
        "assert kind.__module__ == 'logitless.integrations.verl.engine'\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **ways}, check=True
    )
