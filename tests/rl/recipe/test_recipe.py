from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from logitless.rl.recipe import LossRecipe, Recipe, bundled, load_recipe, make_spec
from tests.support.recipes import tiny_file, tiny_recipe


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_load(name: str) -> None:
    assert load_recipe(name).methods


def test_bundled_names() -> None:
    assert bundled() == ["demo", "short", "smollm2"]


def test_overrides_reach_any_depth_and_win_in_order(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        "steps=3",
        "rollout.group=2",
        "rollout.group=6",
        "methods.grpo.change.surrogate.high=0.28",
        "task.options={low: 1, high: 2}",
        "update.body_lr=3e-5",
    )
    assert recipe.steps == 3
    assert recipe.rollout.group == 6
    assert recipe.methods["grpo"].change == {"surrogate": {"high": 0.28}}
    assert recipe.task.options == {"low": 1, "high": 2}
    assert recipe.update.body_lr == 3e-5


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["seed=7"])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(asdict(recipe)), "utf-8")
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.promts=3", r"'rollout.promts' is unknown; did you mean 'rollout.prompts'\?"),
        ("stps=3", r"'stps' is unknown; did you mean 'steps'\?"),
        ("methods.grpo.prest=ppo", r"did you mean 'methods.grpo.preset'\?"),
        ("rollout.abc=1", "'rollout.abc' is unknown, known: rollout.prompts, "),
        ("update={minibatches: 2, minibatches: 4}", "must have each key once, got 'minib"),
        ("seeds=[0, -1]", r"'seeds' must each be at least 0 and below 2\^64, got \[0, -1\]"),
        ("steps=many", "'steps' must be int, got 'many'"),
        ("steps=true", "'steps' must be int, got True"),
        ("update.body_lr=fast", "'update.body_lr' must be float, got 'fast'"),
        ("update.body_lr='3e-5'", "'update.body_lr' must be float, got '3e-5'"),
        ("update.body_lr=1" + "0" * 350, "'update.body_lr' must be float, got 10000"),
        ("rollout=3", "'rollout' must be a mapping, got 3"),
        ("notes=3", "'notes' must be a list, got 3"),
        ("seeds=[1, 0, 1]", r"'seeds' must have no two alike, got \[1, 0, 1\]"),
        ("seeds=3", "'seeds' must be a list, got 3"),
        ("seeds=[one]", r"'seeds\[0\]' must be int, got 'one'"),
        ("steps=0", "'steps' must be at least 1, got 0"),
        ("checkpoint_every=0", "'checkpoint_every' must be at least 1, got 0"),
        ("entropy_change_every=-1", "'entropy_change_every' must be at least 0, got -1"),
        ("update.clip_norm=0", "'update.clip_norm' must be above 0, got 0"),
        ("update.body_lr=-1", "'update.body_lr' must be at least 0, got -1"),
        ("update.head_lr=.inf", "'update.head_lr' must be at least 0, got inf"),
        ("update.beta1=2", r"'update.beta1' must be in \[0, 1\), got 2"),
        ("update.weight_decay=.nan", "'update.weight_decay' must be at least 0, got nan"),
        ("warmup.lr=0", "'warmup.lr' must be above 0, got 0"),
        ("warmup.batch=0", "'warmup.batch' must be at least 1, got 0"),
        ("task.threshold=.nan", "'task.threshold' must be finite, got nan"),
        ("model.layers=0", "'model.layers' must be at least 1, got 0"),
        ("model.hidden_size=15", "'model.hidden_size' must be a multiple of model.heads = 2"),
        ("qqqqqqqq=1", "'qqqqqqqq' is unknown, known: methods, seed, seeds"),
        ("rollout.group=1", "'rollout.group' must be at least 2"),
        ("rollout.temperature=0.0", "'rollout.temperature' must be above 0"),
        ("update.tail_mass=1e-9", "'update': tail_mass must be 0 or >= 1e-5"),
        ("update.memory_budget=much", "'update': memory_budget must"),
        (
            "update={minibatches: 2, micro_batches: 2, micro_tokens: 64}",
            "'update.micro_tokens' must be 0 with update.micro_batches = 2: .*; got 64",
        ),
        ("update.minibatches=64", "cannot fill update.minibatches = 64"),
        ("methods={}", "'methods' must name at least one"),
        ("methods={a/b: {preset: grpo}}", "'methods.a/b': a method is also a folder's name"),
        ("methods={a: {}}", "'methods.a.preset' is missing"),
        ("steps", "override 'steps' must be key=value"),
        ("steps.more=1", "'steps' holds a value, not keys"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, override)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": {"fraction": "much"}}, "control.fraction' must be float, got 'much'"),
        ({"control": {"fraction": {"a": 1}}}, r"control.fraction' must be float, got \{'a': 1\}"),
        ({"control": {"scope": "x"}}, "control.scope' must be one of 'batch', 'micro', got 'x'"),
        ({"aggregation": 3}, "aggregation' must be one of 'token-mean', .*, got 3"),
        ({"entropy": 3}, "entropy' must be a mapping, got 3"),
    ],
)
def test_changes_of_a_loss_are_typed_too(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'methods.mine.change.{message}"):
        make_spec("mine", LossRecipe("clip_cov", change))


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        "update.body_lr=3e-5",
        "methods.clip_cov.change.control.fraction=1",
        "methods.grpo.change.surrogate={low: 2E-1, high: +.3e+0}",
        "task.options={low: 1e3, text: 1e, version: 1.2.3}",
    )
    assert recipe.update.body_lr == 3e-5
    assert isinstance(make_spec("m", recipe.methods["clip_cov"]).control.fraction, float)
    surrogate = make_spec("m", recipe.methods["grpo"]).surrogate
    assert (surrogate.low, surrogate.high) == (0.2, 0.3)
    assert recipe.task.options == {"low": 1000.0, "text": "1e", "version": "1.2.3"}


def test_a_changed_recipe_is_checked_like_a_read_one(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"'rollout\.group' must be at least 2"):
        replace(recipe.rollout, group=1)
    with pytest.raises(ValueError, match=r"cannot fill update\.minibatches = 64"):
        replace(recipe, update=replace(recipe.update, minibatches=64))


def test_a_missing_file_lists_the_bundled_recipes() -> None:
    with pytest.raises(FileNotFoundError, match=r"'nothing\.yaml' is no file.*demo, short"):
        load_recipe("nothing.yaml")


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    path.write_text("- 1\n", "utf-8")
    with pytest.raises(ValueError, match="must be a mapping of keys, got list"):
        load_recipe(str(path))


def aliases(levels: int, leaf: str, level: str) -> str:
    """Each level stands for nine of the one below: 9^levels leaves when written out."""
    nines = [", ".join([f"*a{i}"] * 9) for i in range(levels - 1)]
    lines = [f"a{i + 1}: &a{i + 1} " + level.format(nine) for i, nine in enumerate(nines)]
    return "\n".join([f"a0: &a0 {leaf}", *lines])


RUN = "\nmethods: {one: {preset: grpo}}"
BOMBS = {
    "lists": aliases(12, "[lol]", "[{}]") + "\nnotes: *a11" + RUN,
    "options": aliases(12, "[lol]", "[{}]") + "\ntask: {options: {x: *a11}}" + RUN,
    "merges": aliases(12, "{x: 1}", "{{<<: [{}]}}") + RUN,
    "long text": aliases(6, "x" * 100_000, "[{}]") + RUN,
    "endless": "notes: &a [*a]" + RUN,
    "endless mapping": "task: &a {options: *a}" + RUN,
    "deep": "notes: " + "[" * 5000 + "]" * 5000 + RUN,
    "deep aliases": aliases(60, "[x]", "[{}]").replace(", *a", ", x") + RUN,
    "long": "#" * 300_000 + RUN,
    "digits": "seed: " + "9" * 100_000 + RUN,
    "hexadecimal": "seed: 0x" + "f" * 100_000 + RUN,
    "sexagesimal": "seed: 1" + ":59" * 40_000 + RUN,
    "long key": "? " + "k" * 100_000 + "\n: 1" + RUN,
    "no date": "seed: 2001-99-99" + RUN,
    "no number": "seed: !!int abc" + RUN,
    "no YAML": "seed: [",
    "code": "seed: !!python/object:os.system x" + RUN,
    "a list where a number is": "seed: [1, 2]" + RUN,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_recipe_costs_no_more_than_its_length(text: str, tmp_path: Path) -> None:
    """In a process that may not have much: an error, soon, and a short one."""
    (tmp_path / "bomb.yaml").write_text(text)
    code = (
        "import resource, sys\n"
        "from logitless.rl.recipe import load_recipe\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_recipe(sys.argv[1])\n"
        "except ValueError as error: print(len(str(error)))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) >> 10)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.yaml")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    length, grown = map(int, run.stdout.split())
    assert 0 < length < 1500 and grown < 300


def test_overrides_are_bounded_too() -> None:
    nine = ",".join(["*a"] * 9)
    text = f"notes=[&a [x,x,x], &b [{nine}], [{','.join(['*b'] * 9)}]]"
    with pytest.raises(ValueError, match=r"recipe key 'notes\[0\]' must be str, got \['x'"):
        load_recipe("demo", [text])


def test_a_key_that_comes_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("methods:\n  a: {preset: grpo}\n  a: {preset: ppo}\n")
    with pytest.raises(ValueError, match=r"each key once, got 'a' in line 2 and in line 3"):
        load_recipe(str(tmp_path / "twice.yaml"))


def test_aliases_that_cost_nothing_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text("methods: {one: &m {preset: grpo}, two: *m}\nnotes: [&n text, *n]")
    recipe = load_recipe(str(path))
    assert recipe.methods["one"] == recipe.methods["two"] and recipe.notes == ["text", "text"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.top_k=0", r"'rollout\.top_k' must be at least 1, got 0"),
        ("rollout.top_p=0", r"'rollout\.top_p' must be in \(0, 1\], got 0"),
        ("rollout.min_p=1.5", r"'rollout\.min_p' must be in \[0, 1\], got 1\.5"),
    ],
)
def test_what_is_left_to_draw_from_is_checked(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, override)


def test_a_truncated_rollout_has_its_own_support(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'update\.tail_mass' must be 0 with rollout\.top_p"):
        tiny_recipe(tmp_path, "rollout.top_p=0.9", "update.tail_mass=0.01")


SIREN = {"preset": "siren", "entropy_top_p": 0.8}


def with_method(folder: Path, method: dict[str, Any], *more: str) -> Recipe:
    return tiny_recipe(folder, "compare_repeats=0", f"methods={json.dumps({'own': method})}", *more)


def test_an_entropy_of_the_likeliest_has_all_tokens_to_choose_from(tmp_path: Path) -> None:
    more = ("rollout.top_p=0.9", "rollout.top_k=9")
    message = r"entropy_top_p' must be null with rollout\.top_k, rollout\.top_p: .* got 0\.8"
    with pytest.raises(ValueError, match=message):
        with_method(tmp_path, SIREN, *more)
    with_method(tmp_path, {"preset": "siren"}, *more)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("grpo", r"needs a loss with an entropy term, got 0\.8"),
        # these mix it with entropies of the rollout, or take the mean of all log-probs for it
        ("erc", r"needs a loss with an entropy term"),
        ("repo_d", r"needs a loss with an entropy term"),
    ],
)
def test_an_entropy_of_the_likeliest_is_that_of_a_term(
    tmp_path: Path, preset: str, message: str
) -> None:
    recipe = with_method(tmp_path, {"preset": preset, "entropy_top_p": 0.8})
    with pytest.raises(ValueError, match=rf"'methods\.own\.entropy_top_p' {message}"):
        make_spec("own", recipe.methods["own"])
    term = {"entropy": {"coefficient": 0.01}}
    recipe = with_method(tmp_path, {"preset": preset, "entropy_top_p": 0.8, "change": term})
    if preset == "grpo":
        make_spec("own", recipe.methods["own"])
        return
    with pytest.raises(ValueError, match=r"must be null with .*, which goes by the entropy of all"):
        make_spec("own", recipe.methods["own"])


def test_a_model_that_is_read_has_its_own_sizes(tmp_path: Path) -> None:
    message = (
        r"'model\.path' excludes .*, got model\.layers=3 with model\.path=mine: leave them out"
    )
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, "model={path: mine, layers: 3}")
    # their defaults say nothing
    assert tiny_recipe(tmp_path, "model={path: mine, layers: 2}").model.path == "mine"
