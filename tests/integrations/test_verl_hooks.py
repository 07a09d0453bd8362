"""A verl that is not there, or not known, is one clear error: on packages that stand for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

LOSSES = """
TABLE = {}
def register_policy_loss(name):
    return lambda function: TABLE.setdefault(name, function)
def compute_policy_loss_vanilla(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode,
                                config, rollout_is_weights):
    pass
"""
PATCHES = """
def patch_forward_with_backends(model, use_fused_kernels, fused_kernels_backend):
    model.append((use_fused_kernels, fused_kernels_backend))
"""
ENGINES = """
class FSDPEngineWithLMHead:
    def _build_fsdp_module(self, module): pass
    def prepare_model_inputs(self, micro_batch): pass
    def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func): pass
    def forward_step(self, micro_batch, loss_function, forward_only): pass
    def forward_backward_batch(self, data, loss_function, forward_only=False): pass
class EngineRegistry:
    _engines = {"language_model": {"fsdp2": {"cuda": FSDPEngineWithLMHead, "other": object}}}
"""
MODULES = {
    "trainer/ppo/core_algos": LOSSES,
    "models/transformers/monkey_patch": PATCHES,
    "workers/engine/fsdp/transformer_impl": ENGINES,
}
OURS = "import logitless.integrations.verl as ours"


def stand_in(folder: Path, version: str, **changes: tuple[str, str]) -> Path:
    """A verl of this version; `changes` of the text of modules, by the last part of their names."""
    metadata = folder / f"verl-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    for name, text in MODULES.items():
        path = folder / "verl" / f"{name}.py"
        path.parent.mkdir(parents=True)
        old, new = changes.get(path.stem, ("", ""))
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
    return folder


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither verl nor what is ours of it, and afterwards what was there."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = dict(sys.modules)
    for name in before:
        if of_verl(name):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path_importer_cache", {})


def of_verl(name: str) -> bool:
    return name.split(".")[0] == "verl" or name.startswith("logitless.integrations.verl")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def execute(code: str, folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        exec(code, {})

    yield execute
    for name in [name for name in sys.modules if of_verl(name)]:
        del sys.modules[name]


def fails(run: Callable[..., None], code: str, folder: Path) -> str:
    with pytest.raises(ImportError) as raised:
        run(code, folder)
    return str(raised.value)


@pytest.mark.parametrize("first", [True, False], ids=["before verl", "after verl"])
def test_names_appear_whichever_comes_first(first: bool, tmp_path: Path, run: Any) -> None:
    modules = "\n".join(
        f"import verl.{name.replace('/', '.')} as {name.split('/')[-1]}" for name in MODULES
    )
    code = f"""
{OURS if first else ""}
{modules}
{OURS}
ours.install()
assert core_algos.TABLE.keys() >= {{"logitless/ppo", "logitless/kl_cov", "logitless/prime_rl"}}
engines = transformer_impl.EngineRegistry._engines["language_model"]["fsdp2"]
assert issubclass(engines["cuda"], transformer_impl.FSDPEngineWithLMHead)
assert engines["cuda"].__module__ == "logitless.integrations.verl.engine"
assert engines["other"] is object
seen = []
monkey_patch.patch_forward_with_backends(seen, True, "torch")
assert seen == [(True, "torch")]
"""
    run(code, stand_in(tmp_path, "0.9.4"))


@pytest.mark.parametrize("version", ["0.8.3", "0.10.0", "1.0"])
def test_another_version(
    version: str, tmp_path: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stand_in(tmp_path, version)
    text = fails(run, OURS, folder)
    assert f"found verl {version}" in text and "it knows verl 0.9" in text
    # What verl finds by itself says so, and lets verl run.
    run("import logitless.integrations.verl_plugin", folder)
    assert f"found verl {version}: it knows verl 0.9" in caplog.text


@pytest.mark.parametrize(
    ("module", "old", "new", "word"),
    [
        ("core_algos", "register_policy_loss", "register", "core_algos.register_policy_loss"),
        ("core_algos", "response_mask", "mask", "old_log_prob, log_prob, advantages, mask"),
        ("monkey_patch", "use_fused_kernels", "fused", "(model, fused, fused_kernels_backend)"),
        ("transformer_impl", "def forward_step", "def step", "FSDPEngineWithLMHead.forward_step"),
        ("transformer_impl", "micro_batch, loss_function", "batch, loss", "(self, batch, loss,"),
        ("transformer_impl", '"cuda": FSDPEngineWithLMHead, ', "", "in EngineRegistry"),
    ],
)
def test_a_name_that_is_not_what_it_was(
    module: str, old: str, new: str, word: str, tmp_path: Path, run: Any
) -> None:
    folder = stand_in(tmp_path, "0.9.7", **{module: (old, new)})
    name = next(x for x in MODULES if x.endswith(module)).replace("/", ".")
    text = fails(run, f"{OURS}\nimport verl.{name}", folder)
    assert word in text
    assert "in verl 0.9.7 and found" in text and "it knows verl 0.9" in text


def test_no_verl(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    assert "verl is not installed" in fails(run, OURS, tmp_path)


def test_nothing_of_verl_is_imported_before_it_is_used(tmp_path: Path, run: Any) -> None:
    code = f"""
import sys
import logitless
{OURS}
assert not [name for name in sys.modules if name.split(".")[0] == "verl"]
"""
    run(code, stand_in(tmp_path, "0.9.1"))
