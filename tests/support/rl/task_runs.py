"""Runs of tasks that a test module brings along, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from logitless.rl.demo.job import run
from logitless.rl.recipe import Recipe
from tests.support.recipes import tiny_recipe
from tests.support.rl.runs_alike import half_way, home_in
from tests.support.workers import torchrun


class TaskRuns(NamedTuple):
    file: str  # of the tasks, as recipes name it
    code: str
    options: tuple[str, ...]  # of every recipe
    run: tuple[str, ...]  # and more of the run that others are compared with
    methods: tuple[str, ...]  # of that run

    def fixtures(self) -> tuple[Any, Any]:
        """The folder, where everything runs, and that run in one process."""

        @pytest.fixture(scope="module")
        def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
            with home_in(tmp_path_factory.mktemp("tasks")) as folder:
                (folder / self.file).write_text(self.code, "utf-8")
                yield folder

        @pytest.fixture(scope="module")
        def alone(home: Path) -> Path:
            assert run(self.recipe(home, *self.run), home / "alone") == 0
            return home / "alone"

        return home, alone

    def recipe(self, home: Path, *more: str) -> Recipe:
        return tiny_recipe(home, *self.options, *more)

    def resumed(self, home: Path, alone: Path) -> Path:
        """The run from its middle on."""
        out = home / half_way(alone, home / "resumed", self.methods)
        assert run(self.recipe(home, *self.run), out, resume=True) == 0
        return out

    def resumed_on_two(self, home: Path, alone: Path) -> Path:
        """On two ranks."""
        out = half_way(alone, home / "pair", self.methods)
        given = (*self.options, *self.run, "--resume", "--out", out)
        done = torchrun.forked(2, "train", "tiny.yaml", *given, folder=home)
        assert done.returncode == 0, done.stderr
        return home / out
