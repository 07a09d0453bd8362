"""Tensors on disk: each rank's share, read on any number of ranks, and missed by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from logitless.rl.engine import make_engine, optimizer_state, stored  # noqa: E402
from logitless.rl.policy import load_policy  # noqa: E402
from logitless.rl.recipe import ReferenceRecipe, load_recipe  # noqa: E402
from tests.support.recipes import tiny_file  # noqa: E402
from tests.support.workers.ranks import run_ranks  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has a checkpoint of two ranks, `saved`."""
    folder = tmp_path_factory.mktemp("stored")
    store, file = str(folder / "store"), str(tiny_file(folder))
    run_ranks("rl.stored_shares", [[str(rank), "2", store, file] for rank in range(2)], 600)
    return folder


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "saved", tmp_path / "saved"))


def shares(place: Path) -> list[Path]:
    return sorted(place.glob("*.safetensors"))


def test_each_rank_writes_its_half_and_nothing_is_a_pickle(home: Path) -> None:
    saved = home / "saved"
    for name in ("optimizer", "reference"):
        sizes = [path.stat().st_size for path in shares(saved / name)]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja", ".txt", ".model"}, kinds
    assert not list(saved.glob("*.apart"))


def test_transformers_reads_the_weights(home: Path) -> None:
    expected = load_file(home / "expected.safetensors")
    found = dict(load_policy(home / "saved").model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert load_file(home / "saved" / "model.safetensors").keys() == expected.keys()


def test_one_process_reads_what_two_wrote_and_writes_a_file(home: Path, tmp_path: Path) -> None:
    recipe = load_recipe(home / "tiny.yaml", ["update.embedding_lr=0.001"])
    policy = load_policy(home / "saved")
    with torch.no_grad():
        for p in policy.model.parameters():
            p.zero_()
    engine = make_engine(policy, recipe.update, 1, ReferenceRecipe(kind="ema", decay=0.5))
    engine.load(home / "saved")
    engine.save(tmp_path)
    for name in ("optimizer", "reference"):
        whole = load_file(tmp_path / f"{name}.safetensors")
        parts = [load_file(path) for path in shares(home / "saved" / name)]
        for key, value in whole.items():
            pieces = [part[key] for part in parts if key in part]
            joined = torch.cat(pieces) if value.ndim else pieces[0]
            assert torch.equal(joined, value), key
        assert whole.keys() == set().union(*parts) and whole
    model = [load_file(at / "model.safetensors") for at in (tmp_path, home / "saved")]
    assert model[0].keys() == model[1].keys()
    assert all(torch.equal(model[0][name], x) for name, x in model[1].items())


def test_a_share_that_is_gone_or_cut_off_is_missed(copied: Path) -> None:
    place = copied / optimizer_state.NAME
    last = shares(place)[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-8])
    with pytest.raises(Exception, match=r"(?i)incomplete|not fully covered|invalid"):
        stored.find(place)
    last.unlink()
    with pytest.raises(ValueError, match=r"optimizer must have \d+\.\w+ \[.*\], of which it has"):
        stored.find(place)
    shares(place)[0].unlink()
    with pytest.raises(FileNotFoundError, match="optimizer"):
        stored.find(place)


def test_a_missing_tensor_is_named(copied: Path) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    rows = tensors.pop(name)
    wanted = {name: torch.zeros_like(rows)}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"model must have {name} .*, which is missing"):
        stored.read(stored.find(copied / "model"), wanted, copied / "model")
    save_file(tensors | {name: rows[:3].clone()}, file)
    with pytest.raises(ValueError, match=rf"model must have {name} \[16, 16\], of which it has 48"):
        stored.read(stored.find(copied / "model"), wanted, copied / "model")


def test_a_tensor_of_the_index_is_missed(copied: Path) -> None:
    index = copied / "reference" / stored.INDEX
    content = json.loads(index.read_text("utf-8"))
    content[stored.SHAPES]["other"] = [2]
    index.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"reference must have other \[2\], which is missing"):
        stored.find(copied / "reference")
