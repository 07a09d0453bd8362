"""A recipe: everything a training run depends on, as frozen dataclasses read from YAML.

    recipe = load_recipe("demo", ["steps=10", "methods.grpo.change.surrogate.high=0.28"])

Every key must exist: an unknown one is a ValueError that suggests the nearest.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import logitless as ll
from logitless.rl.recipe_text import LONGEST, parse


@dataclass(frozen=True)
class ModelRecipe:
    """A folder (or hub name) of any Hugging Face causal LM, or, without `path`, a small Llama from
    scratch.
    """

    path: str | None = None
    # "qwen" (151,646 entries), "bytes" (256 and the specials), or a folder; used where `path` is
    # None.
    tokenizer: str = "qwen"
    # Rows of the head; None: the tokenizer's length rounded up to a multiple of 128.
    vocab_size: int | None = None
    hidden_size: int = 64
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 4
    max_positions: int = 128


@dataclass(frozen=True)
class TaskRecipe:
    # A built-in name, "reasoning_gym:NAME", or "module:attribute" of your own.
    name: str = "sum_to_n"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmupRecipe:
    """Supervised steps before RL (see warmup.py); steps = 0 and full_steps = 0 skip it."""

    steps: int = 0
    batch: int = 128
    examples: int = 16384
    lr: float = 3e-3
    # Logit given to the rows of the head that no example uses, and what is kept of their own.
    unused_logit: float = -12.0
    unused_scale: float = 0.3
    full_steps: int = 0
    full_lr: float = 3e-4


@dataclass(frozen=True)
class RolloutRecipe:
    prompts: int = 8
    group: int = 16
    max_new_tokens: int = 16
    temperature: float = 1.0
    chat_template: bool = False


@dataclass(frozen=True)
class UpdateRecipe:
    """One RL step's optimization: `epochs` passes over `minibatches` of whole sequences, AdamW."""

    minibatches: int = 4
    micro_batches: int = 1
    epochs: int = 1
    advantage: str = "group_std"
    # Of one linear_policy_loss call: bytes, or like "64MiB"; None: the library's default.
    memory_budget: str | None = None
    # Of one linear_policy_loss call: rows whose 64 largest entries hold all but this get their
    # gradient from those; 0: every gradient is exact.
    tail_mass: float = 0.0
    # Learning rate 0 freezes the part.
    body_lr: float = 3e-5
    head_lr: float = 3e-5
    embedding_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class LossRecipe:
    """A row of `logitless.presets`, and what to change in it: {control: {fraction: 0.1}}."""

    preset: str
    change: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    methods: dict[str, LossRecipe]
    seed: int = 0
    steps: int = 40
    # Every k-th step also gets its predicted and measured entropy change; 0: never.
    entropy_change_every: int = 5
    checkpoint_every: int = 20
    # Repeats of the comparison with full logits; 0: no comparison.
    compare_repeats: int = 0
    # Sentences for the report: what a reader of this recipe's numbers must know.
    notes: list[str] = field(default_factory=list)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    task: TaskRecipe = field(default_factory=TaskRecipe)
    warmup: WarmupRecipe = field(default_factory=WarmupRecipe)
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    update: UpdateRecipe = field(default_factory=UpdateRecipe)


def bundled() -> list[str]:
    """Names of the recipes inside the package."""
    names = [file.name for file in _recipes().iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a YAML file, or a bundled recipe by name, and applies `key.sub=value` overrides.

    ValueError where a key is unknown (with the nearest known one), a value has the wrong type or an
    override is not `key=value`; FileNotFoundError where `source` is neither a file nor bundled.
    """
    if source in bundled():
        text = _recipes().joinpath(f"{source}.yaml").read_text("utf-8")
    elif Path(source).is_file():
        with Path(source).open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    else:
        raise FileNotFoundError(
            f"recipe {source!r} is no file and not one of the bundled ones: {', '.join(bundled())}"
        )
    tree = parse(text, f"recipe {source!r}") or {}
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {source!r} must be a mapping of keys, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return validate(build(Recipe, tree))


def validate(recipe: Recipe) -> Recipe:
    """Checks what types cannot say; returns the recipe."""
    positive = {
        "steps": recipe.steps,
        "rollout.prompts": recipe.rollout.prompts,
        "rollout.max_new_tokens": recipe.rollout.max_new_tokens,
        "update.minibatches": recipe.update.minibatches,
        "update.micro_batches": recipe.update.micro_batches,
        "update.epochs": recipe.update.epochs,
    }
    for key, value in positive.items():
        if value < 1:
            raise ValueError(f"recipe key '{key}' must be at least 1, got {value}")
    if recipe.rollout.group < 2:
        raise ValueError(
            f"recipe key 'rollout.group' must be at least 2 (advantages compare), got "
            f"{recipe.rollout.group}"
        )
    if not recipe.rollout.temperature > 0:
        raise ValueError(
            f"recipe key 'rollout.temperature' must be above 0, got {recipe.rollout.temperature}"
        )
    sequences = recipe.rollout.prompts * recipe.rollout.group
    if sequences < recipe.update.minibatches * recipe.update.micro_batches:
        raise ValueError(
            f"recipe: {sequences} sequences a step (rollout.prompts * rollout.group) cannot fill "
            f"update.minibatches = {recipe.update.minibatches} of update.micro_batches = "
            f"{recipe.update.micro_batches}"
        )
    try:
        ll.plan(1, 1, 1, budget=recipe.update.memory_budget, tail_mass=recipe.update.tail_mass)
    except ValueError as error:
        raise ValueError(f"recipe key 'update': {str(error).removeprefix('plan: ')}") from None
    if not recipe.methods:
        raise ValueError("recipe key 'methods' must name at least one method")
    for name in recipe.methods:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(
                f"recipe key 'methods.{name}': a method is also a folder's name; use "
                f"letters, digits, - and _"
            )
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe)


def build(kind: type[Any], tree: Mapping[str, Any], path: str = "") -> Any:
    """A dataclass `kind` from a mapping, checking keys and types; `path` is for errors."""
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ValueError(unknown_key("recipe key", path + str(key), [path + h for h in hints]))
    missing = [
        f.name
        for f in fields(kind)
        if f.default is MISSING and f.default_factory is MISSING and f.name not in tree
    ]
    if missing:
        raise ValueError(f"recipe key '{path}{missing[0]}' is missing")
    return kind(**{key: _convert(hints[key], value, path + key) for key, value in tree.items()})


def change(spec: Any, changes: Mapping[str, Any], path: str) -> Any:
    """`dataclasses.replace`, reaching into nested dataclasses: {"control": {"fraction": 0.1}}.

    Where the field is None, the one dataclass of its type that has those keys is made:
    {"entropy": {"coefficient": 0.01}}.
    """
    hints = get_type_hints(type(spec))
    new: dict[str, Any] = {}
    for key, value in changes.items():
        where = f"{path}.{key}"
        if key not in hints:
            raise ValueError(unknown_key("recipe key", where, [f"{path}.{k}" for k in hints]))
        inner = getattr(spec, key)
        if not isinstance(value, Mapping):
            new[key] = value
        elif is_dataclass(inner):
            new[key] = change(inner, value, where)
        else:
            kinds: list[Any] = [k for k in get_args(hints[key]) if is_dataclass(k)]
            fitting = [k for k in kinds if set(value) <= {f.name for f in fields(k)}]
            if len(fitting) != 1:
                raise ValueError(
                    f"recipe key '{where}' is {inner!r} in this preset: no parts to change"
                )
            new[key] = fitting[0](**value)
    return replace(spec, **new)


def shown(value: Any) -> str:
    """A value of a recipe for a message; `parse` bounds how long the whole of it is."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def unknown_key(what: str, key: str, known: Iterable[str]) -> str:
    known, key = list(known), key if len(key) <= 200 else f"{key[:200]}..."
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return (
        f"{what} '{key}' is unknown; did you mean '{near[0]}'?"
        if near
        else f"{what} '{key}' is unknown"
    )


def _recipes() -> Any:
    return resources.files(__package__).joinpath("recipes")


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (h for h in get_args(hint) if h is not type(None))
        return _convert(hint, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"recipe key '{path}' must be a mapping, got {shown(value)}")
        inner = get_args(hint)[1]
        if inner is Any:
            return dict(value)
        return {str(k): _convert(inner, v, f"{path}.{k}") for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"recipe key '{path}' must be a list, got {shown(value)}")
        return [_convert(get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"recipe key '{path}' must be a mapping, got {shown(value)}")
        return build(hint, value, path + ".")  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 3e-5 (no dot) as a string.
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"recipe key '{path}' must be {hint.__name__}, got {shown(value)}")
    return value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {shown(override)} must be key=value, like rollout.group=8")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {shown(override)}: '{parent}' holds a value, not keys")
    tree[last] = parse(text, f"override {shown(override)}")
