"""Ranks with a share of the model each, by FSDP2: the tokens, losses and files of one process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_alike, half_way, home_in  # noqa: E402
from tests.support.workers import torchrun  # noqa: E402
from tests.support.workers.ranks import run_ranks  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch without gloo"
)

METHODS: dict[str, Any] = {
    "clip_cov": {
        "preset": "clip_cov",
        "change": {
            "control": {"fraction": 0.2, "low": 0.0, "high": 50.0},
            "kl": {"coefficient": 0.1},
        },
    },
    "siren": {"preset": "siren", "entropy_top_p": 0.8, "controller": {"kind": "anchor"}},
}
# Sequences are no multiple of ranks, minibatches or micro-batches.
OPTIONS = (
    "compare_repeats=0", "model.layers=2", "rollout.prompts=5", "rollout.group=3",
    "update.minibatches=3", "update.micro_batches=4", "evaluation.every=4", "evaluation.group=3",
    "evaluation.prompts=5", "reference={kind: ema, decay: 0.5}",
    "distributed.shard=true", f"methods={json.dumps(METHODS)}",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_in(tmp_path_factory.mktemp("shards")) as folder:
        yield folder


def recipe(home: Path) -> Recipe:
    return tiny_recipe(home, *OPTIONS)


def on_two(home: Path, out: str, *options: str, run: Any = torchrun.forked) -> Any:
    return run(2, "train", "tiny.yaml", *OPTIONS, *options, "--out", out, folder=home)


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """One rank has the whole model."""
    assert run(recipe(home), home / "alone") == 0
    return home / "alone"


@pytest.fixture(scope="module")
def pair(home: Path) -> Path:
    done = on_two(home, "pair")
    assert done.returncode == 0, done.stderr
    return home / "pair"


def test_gradients_errors_and_files_are_those_of_a_whole_model(home: Path, tmp_path: Path) -> None:
    store, file = str(tmp_path / "store"), str(home / "tiny.yaml")
    run_ranks("rl.spread_model", [[str(rank), "2", store, file] for rank in range(2)], 600)


def test_two_shares_are_one_process(pair: Path, alone: Path) -> None:
    assert_alike(pair, alone, list(METHODS))
    rows = metrics.read(pair / "clip_cov" / metrics.FILE)
    assert sum(row["selected_tokens"] for row in rows) > 0
    assert rows[3]["actor/kl_loss"] > 0
    assert {"entropy_change", "entropy_change_predicted"} <= rows[2].keys()


def test_shares_cut_their_sequences_by_tokens(home: Path) -> None:
    """Ranks with other sequences have other parts, and go forward and backward equally often."""
    more = ("update.micro_batches=1", "update.micro_tokens=25", "model.share_prompts=true")
    assert run(tiny_recipe(home, *OPTIONS, *more), home / "by_tokens") == 0
    done = on_two(home, "by_tokens_pair", *more)
    assert done.returncode == 0, done.stderr
    assert_alike(home / "by_tokens_pair", home / "by_tokens", list(METHODS))


def test_a_checkpoint_is_that_of_one_process_but_for_shares(pair: Path, alone: Path) -> None:
    for method in METHODS:
        saved, expected = (checkpoint.latest(at / method) for at in (pair, alone))
        assert saved is not None and expected is not None
        names = [{path.name for path in at.iterdir()} for at in (saved, expected)]
        apart = {path.name for path in saved.iterdir() if path.is_dir()}
        assert "optimizer" in apart <= {"optimizer", "reference"}
        assert names[0] - apart == names[1] - {f"{name}.safetensors" for name in apart}
        assert (saved / "config.json").read_bytes() == (expected / "config.json").read_bytes()


def tensors_in(saved: Path) -> dict[str, Any]:
    """Whole ones of all its files, by folder and name: what all ranks have is in any one's file."""
    pieces: dict[str, list[Any]] = {}
    for path in sorted(saved.rglob("*.safetensors")):
        part = path.parent if path.parent != saved else path
        for name, tensor in load_file(path).items():
            pieces.setdefault(f"{part.relative_to(saved)} {name}", []).append(tensor)
    return {name: torch.cat(few) if few[0].ndim else few[0] for name, few in pieces.items()}


def test_a_damaged_share_gives_way_to_the_checkpoint_before(home: Path, pair: Path) -> None:
    """Which one rank alone would have read."""
    out = home / "damaged"
    shutil.copytree(pair, out)
    saved = checkpoint.latest(out / "siren")
    assert saved is not None
    share = max((saved / "optimizer").glob("*.safetensors"))
    share.write_bytes(share.read_bytes()[:-4])
    done = on_two(home, out.name, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"cannot read damaged/siren/{saved.name}: ") == 1, done.stdout
    expected = checkpoint.latest(pair / "siren")
    assert expected is not None
    tensors = tensors_in(expected)
    found = tensors_in(saved)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], x) for name, x in tensors.items())


def test_one_process_goes_on_for_two_shares(home: Path, pair: Path, alone: Path) -> None:
    out = half_way(pair, home / "then_one", list(METHODS))
    assert run(recipe(home), home / out, resume=True) == 0
    assert_alike(home / out, alone, list(METHODS))


def test_two_shares_go_on_for_one_process(home: Path, alone: Path) -> None:
    done = on_two(home, half_way(alone, home / "then_two", list(METHODS)), "--resume")
    assert done.returncode == 0, done.stderr
    assert_alike(home / "then_two", alone, list(METHODS))


def test_whole_models_go_on_for_shares(home: Path, pair: Path, alone: Path) -> None:
    out = half_way(pair, home / "then_whole", list(METHODS))
    done = on_two(home, out, "--resume", "distributed.shard=false")
    assert done.returncode == 0, done.stderr
    assert_alike(home / out, alone, list(METHODS))


def test_shares_go_on_bit_for_bit(home: Path, pair: Path) -> None:
    out = half_way(pair, home / "again", list(METHODS))
    done = on_two(home, out, "--resume")
    assert done.returncode == 0, done.stderr
    for method in METHODS:
        saved, expected = (checkpoint.latest(at / method) for at in (home / out, pair))
        assert saved is not None and expected is not None and saved.name == expected.name
        found, tensors = tensors_in(saved), tensors_in(expected)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], x) for name, x in tensors.items())


def test_a_method_that_diverges_ends_on_all_ranks_and_the_next_begins(home: Path) -> None:
    wild = {"preset": "ppo", "change": {"entropy": {"coefficient": 1e38}}}
    methods = json.dumps({"wild": wild, "grpo": {"preset": "grpo"}})
    done = on_two(home, "wild", f"methods={methods}", "steps=2", "reference={kind: frozen}")
    assert done.stdout.count("method 'wild' diverged in step ") == 1, done.stderr
    assert len(metrics.read(home / "wild" / "grpo" / metrics.FILE)) == 2


def test_who_fails_inside_of_the_model_is_missed(home: Path) -> None:
    """The other rank waits for its part of a layer."""
    (home / "broken.py").write_text(
        "import os\n"
        "from transformers.models.llama import modeling_llama\n"
        "from logitless.rl.tasks import SumToN\n"
        "forward = modeling_llama.LlamaMLP.forward\n"
        "def out_of_memory(self, x):\n"
        "    if x.requires_grad and os.environ.get('RANK') == '1':\n"
        "        raise MemoryError('no room for a layer')\n"
        "    return forward(self, x)\n"
        "class Task(SumToN):\n"
        "    def prompts(self, rng, n):\n"
        "        if n == 5:\n"
        "            modeling_llama.LlamaMLP.forward = out_of_memory\n"
        "        return super().prompts(rng, n)\n",
        "utf-8",
    )
    began = time.monotonic()
    more = ("task.name=broken.py:Task", "evaluation.every=0", "update.body_lr=0.001")
    done = on_two(home, "broken", *more, run=torchrun.run)
    assert done.returncode != 0 and time.monotonic() - began < 300
    assert "MemoryError: no room for a layer" in done.stderr
    assert not metrics.read(home / "broken" / "clip_cov" / metrics.FILE)


def test_every_seed_is_that_of_one_process(home: Path) -> None:
    """The second one's model is made, and warmed up, beside the first one's shares."""
    small = ("steps=2", "seeds=[3, 0]", "evaluation.every=0", "reference={kind: frozen}")
    more = (*small, "methods={grpo: {preset: grpo}}")
    assert run(tiny_recipe(home, *OPTIONS, *more), home / "seeds") == 0
    done = on_two(home, "seeds_pair", *more)
    assert done.returncode == 0, done.stderr
    for seed in ("seed3", "seed0"):
        assert_alike(home / "seeds_pair" / seed, home / "seeds" / seed, ["grpo"], steps=2)


def test_adapters_are_those_of_one_process(home: Path, alone: Path) -> None:
    """On body and head, beside weights that are spread and stay as they are."""
    pytest.importorskip("peft", reason="adapters are peft's")
    base = checkpoint.latest(alone / "warmup")
    lora = (
        "warmup.steps=0", "warmup.full_steps=0", f"model={{path: {base}}}", "lora.rank=4",
        "lora.targets=[all-linear, lm_head]", "update.body_lr=3e-4", "update.head_lr=3e-4",
    )  # fmt: skip
    recipe, methods = tiny_recipe(home, *OPTIONS, *lora), list(METHODS)
    assert run(recipe, home / "adapters") == 0
    done = on_two(home, "adapters_pair", *lora)
    assert done.returncode == 0, done.stderr
    assert_alike(home / "adapters_pair", home / "adapters", methods)
    saved = checkpoint.latest(home / "adapters_pair" / "clip_cov")
    assert saved is not None and not (saved / "model.safetensors").exists()
    # and with another number of ranks
    one = home / half_way(home / "adapters_pair", home / "adapters_then_one", methods)
    assert run(recipe, one, resume=True) == 0
    assert_alike(one, home / "adapters", methods)
    out = half_way(home / "adapters", home / "adapters_then_two", methods)
    done = on_two(home, out, *lora, "--resume")
    assert done.returncode == 0, done.stderr
    assert_alike(home / out, home / "adapters", methods)
