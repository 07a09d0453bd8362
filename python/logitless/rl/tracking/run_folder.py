"""The folder of a run: one process at a time writes to it, and nothing in it goes unasked.

recipe.json says what the folder's runs were made with, and when, by which command they were started
and resumed; run.lock says which process writes now.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logitless.rl.tracking import checkpoint, completions, files, metrics, origin, trackers

RECIPE_FILE, LOCK_FILE = "recipe.json", "run.lock"
# The folders of the seeds, where a run has several.
SEEDS = "seed[-0-9]*"
# What a method's folder has beside checkpoints.
FILES = (metrics.FILE, completions.FILE, metrics.EVALUATION_FILE, *trackers.FILES)
# What may differ in a resumed run: how far it goes, where, and what it writes down on the way.
MAY_CHANGE = (
    "steps", "model.device", "distributed", "entropy_change_every", "entropy_change_share",
    "checkpoint_every", "checkpoint_keep", "compare_repeats", "show_answers", "log_to",
    "log_project", "rollout.max_rounds", "rollout.server", "rollout.server_folder", "evaluation",
    "notes",
)  # fmt: skip
# Of a recorded recipe: the same with the keys that have come since it was recorded.
Completed = Callable[[dict[str, Any]], dict[str, Any]]


def claim(
    folder: Path,
    recipe: Mapping[str, Any],
    fixed: Sequence[str] = (),
    *,
    resume: bool,
    overwrite: bool,
    completed: Completed = dict,
) -> None:
    """Makes the folder this recipe's, inside of `locked`; arguments and errors as `check`."""
    check(folder, recipe, fixed, resume=resume, overwrite=overwrite, completed=completed)
    if overwrite:
        clear(folder, runs_in(folder))
    record(folder, recipe, resume=resume, completed=completed)


def record(
    folder: Path, recipe: Mapping[str, Any], *, resume: bool, completed: Completed = dict
) -> None:
    """Writes down what the folder's runs are made with. A resumed run leaves what is said of the
    first start, and adds to `resumed` what is true of its own, and the keys that have changed."""
    before, start = _recorded(folder) if resume else {}, origin.of_now()
    if before:
        changes = differences(_as_json(completed(before["recipe"])), _as_json(recipe))
        start["changed"] = {key: {"before": old, "now": new} for key, old, new in changes}
        now = before | {"recipe": recipe, "resumed": [*before.get("resumed", []), start]}
    else:
        now = {"recipe": recipe} | start
    files.write(folder / RECIPE_FILE, json.dumps(now, indent=2) + "\n")


def check(
    folder: Path,
    recipe: Mapping[str, Any],
    fixed: Sequence[str] = (),
    *,
    resume: bool,
    overwrite: bool,
    completed: Completed = dict,
) -> None:
    """Whether a run may have the folder. recipe: as plain values; fixed: those of MAY_CHANGE that
    may not, here.

    ValueError where it holds a run and neither `resume` nor `overwrite` is given, where there is
    nothing to resume, and where the run to resume had other values: each key is listed.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other, got both")
    held = runs_in(folder)
    if resume:
        may = [key for key in MAY_CHANGE if key not in fixed]
        _check_same(folder, recipe, held, may, completed)
    elif held and not overwrite:
        raise ValueError(
            f"{folder} holds a run ({', '.join(held)}): pass --resume to go on with it, "
            "--overwrite to delete it, or another --out"
        )


def recipe_in(folder: Path) -> dict[str, Any] | None:
    """The recipe that the folder's runs were started with, as plain values; None: it has none."""
    recipe: dict[str, Any] | None = _recorded(folder).get("recipe")
    return recipe


def starts_in(folder: Path) -> list[dict[str, Any]]:
    """When, by what and where the folder's runs were started, and then each time resumed."""
    first = _recorded(folder)
    resumed: list[dict[str, Any]] = first.pop("resumed", [])
    first.pop("recipe", None)
    return [first, *resumed]


def _recorded(folder: Path) -> dict[str, Any]:
    file = folder / RECIPE_FILE
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _as_json(recipe: Mapping[str, Any]) -> Any:
    """Tuples are lists there."""
    return json.loads(json.dumps(recipe))


def runs_in(folder: Path) -> list[str]:
    """The names of the runs, the warm-up included, that have metrics or a checkpoint there; with
    the seed's folder, like seed0/grpo, where there is one."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in (*folder.glob("*/"), *folder.glob(f"{SEEDS}/*/"))
        if (path / metrics.FILE).exists() or any(path.glob(f"{checkpoint.PREFIX}*"))
    )


def clear(folder: Path, runs: list[str]) -> None:
    """Removes the checkpoints, metrics and answers of these runs, also those that trackers have
    there, and nothing else."""
    for name in runs:
        for pattern in (*checkpoint.FOLDERS, *trackers.FOLDERS):
            for old in (folder / name).glob(pattern):
                shutil.rmtree(old)
        for pattern in FILES:
            for old in (folder / name).glob(pattern):
                old.unlink()


def _check_same(
    folder: Path,
    recipe: Mapping[str, Any],
    held: list[str],
    may_change: list[str],
    completed: Completed,
) -> None:
    before = recipe_in(folder)
    if before is None:
        found = f"the runs {', '.join(held)} without {RECIPE_FILE}" if held else "no run"
        raise ValueError(f"--resume needs a run that was started in {folder}, which holds {found}")
    changes = [
        f"{key}: {old} before, {new} now"
        for key, old, new in differences(_as_json(completed(before)), _as_json(recipe))
        if not any(f"{key}.".startswith(f"{may}.") for may in may_change)
    ]
    if changes:
        raise ValueError(
            f"--resume goes on with the recipe that {folder} was started with, but for "
            f"{', '.join(may_change)} and methods or seeds that are new; got " + "; ".join(changes)
        )


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of what differs; a method or a seed on one side alone is no
    change."""
    # but one seed and a list of them have different folders
    if path == "seeds" and before and now:
        return
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        if before != now:
            yield path, before, now
        return
    for key in [*before, *(key for key in now if key not in before)]:
        if path == "methods" and not (key in before and key in now):
            continue
        inner = f"{path}.{key}" if path else str(key)
        yield from differences(before.get(key), now.get(key), inner)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and holds it for this process. ValueError where another one does.

    The lock of a process that was killed counts no more on the machine that it ran on.
    """
    import fcntl

    files.make(folder)
    path, host = folder / LOCK_FILE, socket.gethostname()
    with files.writing(path):
        opened = path.open("a+", encoding="utf-8")
    with opened as file:
        file.seek(0)
        owner = file.read()
        if owner and not owner.endswith(f" on {host}\n"):
            raise _taken(folder, owner)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(folder, owner) from None
        file.truncate(0)
        with files.writing(path):
            file.write(f"process {os.getpid()} on {host}\n")
            file.flush()
        try:
            yield
        finally:
            # not removed: another process may have opened it, and would lock a file of no name
            file.truncate(0)


def _taken(folder: Path, owner: str) -> ValueError:
    return ValueError(
        f"{folder} is in use by {owner.strip() or 'another process'}; if that one is gone, delete "
        f"{folder / LOCK_FILE}"
    )
