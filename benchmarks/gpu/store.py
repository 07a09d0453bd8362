"""results.json: what has been found so far, whole at every moment.

Every change is read, made and renamed into place, so whoever is killed leaves all that was measured
before. The parent and its one stage at a time take turns, and so need no lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "results.json"
REHEARSAL = "rehearsal on a CPU: times mean nothing"
# A case that its process did not live to finish, and one that is over.
RUNNING, DONE, FAILED, SKIPPED = "running", "done", "failed", "skipped"
OVER = (DONE, FAILED, SKIPPED)
Data = dict[str, Any]


class Store:
    def __init__(self, out: Path) -> None:
        self.path = out / NAME

    def read(self) -> Data:
        return load(self.path) if self.path.exists() else {}

    @contextmanager
    def edit(self) -> Iterator[Data]:
        data = self.read()
        yield data
        write_whole(self.path, json.dumps(data, indent=1, allow_nan=True) + "\n")

    # ---- stages

    def stage(self, name: str) -> Data:
        """{} before it has begun."""
        found: Data = self.read().get("stages", {}).get(name, {})
        return found

    def set_stage(self, name: str, **fields: Any) -> None:
        with self.edit() as data:
            data.setdefault("stages", {}).setdefault(name, {"cases": {}}).update(fields)

    def forget_stage(self, name: str) -> None:
        if self.stage(name):
            with self.edit() as data:
                del data["stages"][name]

    # ---- cases of a stage

    def cases(self, stage: str) -> Data:
        found: Data = self.stage(stage).get("cases", {})
        return found

    def set_case(self, stage: str, key: str, status: str, **fields: Any) -> None:
        with self.edit() as data:
            cases = data.setdefault("stages", {}).setdefault(stage, {}).setdefault("cases", {})
            cases[key] = {"status": status, **fields}

    def forget_case(self, stage: str, key: str) -> None:
        with self.edit() as data:
            del data["stages"][stage]["cases"][key]

    def is_over(self, stage: str, key: str) -> bool:
        return self.cases(stage).get(key, {}).get("status") in OVER

    def measured(self, key: str) -> bool:
        """Whether any stage has done this case."""
        stages = self.read().get("stages", {}).values()
        return any(s.get("cases", {}).get(key, {}).get("status") == DONE for s in stages)

    def fail_running(self, stage: str, reason: str) -> list[str]:
        """The cases that a dead process had begun are its victims, or its killers."""
        running = [k for k, case in self.cases(stage).items() if case["status"] == RUNNING]
        for key in running:
            self.set_case(stage, key, FAILED, reason=reason)
        return running


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)


def load(path: Path) -> Data:
    """The results in a file, or in the folder of a run."""
    path = path / NAME if path.is_dir() else path
    data: Data = json.loads(path.read_text())
    if not isinstance(data, dict) or "stages" not in data:
        raise ValueError(f"{path}: expected the results.json of ./dev gpu, got something else")
    return data
