"""A tiny recipe, run undisturbed and then killed and resumed again and again. Run by test_kill.py
with a recipe's file, a folder and a number of kills; prints what each kill was.

One process imports everything and forks the runs, whose starts then cost little.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from logitless.rl.demo.job import run
from logitless.rl.recipe import Recipe, load_recipe
from logitless.rl.report import page

SEED = 0
# The furthest a run gets between two kills, as a share of a whole one: it is killed several times.
FURTHEST = 0.5


class Touches:
    """An audit hook that counts what a process does to the names and files in a folder, and kills
    it before a certain one."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith("os."):
            paths = [x for x in arguments if isinstance(x, (str, os.PathLike))]
            if any(os.fspath(path).startswith(self.folder) for path in paths):
                self.count += 1
                if self.count == self.last:
                    os.kill(os.getpid(), signal.SIGKILL)


def start(recipe: Recipe, out: Path, touches: Touches) -> int:
    """The id of a process that runs the recipe, or goes on with it."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.addaudithook(touches)
        status = run(recipe, out, resume=(out / "recipe.json").exists())
        out.with_suffix(".touches").write_text(str(touches.count))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int, seconds: float = math.inf) -> bool:
    """Whether the process was killed, at the latest after so many seconds of a processor, which do
    not depend on what else the machine does. An end of another kind than a done run is an error."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if spent(child) > seconds:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def spent(process: int) -> float:
    """Seconds of a processor."""
    after_name = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    # pictures are most of a run's seconds
    vars(page)["save_plots"] = lambda *runs: {}
    recipe, folder, kills = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    rng, whole = random.Random(SEED), folder / "whole"
    assert not wait(start(recipe, whole, Touches(whole)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    count = int(whole.with_suffix(".touches").read_text())
    found: list[str] = []
    number = 0
    while len(found) < kills:
        out = folder / f"run{number}"
        # half of them anywhere, and half between two steps of what is written
        if len(found) % 2:
            moment = rng.uniform(0, FURTHEST * seconds)
            killed = wait(start(recipe, out, Touches(out)), moment)
            what = f"{out.name}: after {moment:.2f} of {seconds:.2f} s"
        else:
            last = rng.randrange(1, int(FURTHEST * count))
            killed = wait(start(recipe, out, Touches(out, last)))
            what = f"{out.name}: at touch {last} of {count}"
        if killed:
            found.append(what)
        else:
            number += 1
    out = folder / f"run{number}"
    assert not wait(start(recipe, out, Touches(out)))
    sys.stdout.write(json.dumps({"kills": found, "runs": number + 1}))


if __name__ == "__main__":
    main()
