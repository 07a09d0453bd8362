"""A GPU for nine minutes: the most valuable answers first, each written down as it comes.

    python3 -u -m benchmarks.gpu.contact --out DIR          on a machine with a GPU
    python -m benchmarks.gpu.contact --prepare              beforehand: what travels, see carry.py
    python -m benchmarks.gpu.contact --device cpu --tiny --out DIR     does it run at all?

It asks the network for nothing. This process only watches: steps run in others, which may hang,
crash and lose the device. DIR gets results.json (whole at every moment), log.txt, table.md and what
the tests said; a short table is printed last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import carry, contact_table
from benchmarks.gpu.build_paths import BUILT, sources_hash
from benchmarks.gpu.contact_worker import AGAIN, Events, Fields
from benchmarks.gpu.runner import CUDA, LOG, watch
from benchmarks.gpu.stages.build import architectures
from benchmarks.gpu.stages.environment import facts, said
from benchmarks.gpu.store import write_whole


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float  # at most
    what: str
    core: bool = True  # needs the package, and not torch alone


# In the order of what one would rather know.
STEPS = (
    Step("T1", 40, "what the machine can do: memory, products by width", core=False),
    Step("T2", 45, "correctness of every backend, against float64"),
    Step("T4", 115, "heads: bare products, ours, others"),
    Step("T3", 45, "rows of given logits"),
    Step("T10", 30, "a student beside a teacher: given logits, two heads"),
    Step("T5", 40, "heads by the size of their tiles"),
    Step("T6", 30, "losses of a million tokens, statistics of their batch"),
    Step("T11", 15, "draws of a token a row"),
    Step("T12", 15, "heads within sampling masks"),
    Step("T13", 20, "heads with an adapter, entropy_top_p, in a vocab_group"),
    Step("T8", 90, "the tests marked gpu"),
    Step("T7", 30, "a second stream, CUDA graphs"),
    Step("T9", 25, "what limits the kernels"),
)
NAMES = tuple(step.name for step in STEPS)
SECONDS = 540.0
# Kept for the table at the end; and less than this is no use to a step.
KEPT, USEFUL = 4.0, 4.0
# What a process may take to begin: imports, the device, kernels. And to end by itself.
START, END = 25.0, 25.0
# How often a process that died under a case is begun again.
LIVES = 12
# Seconds that the build may hold up what needs it.
BUILD_SECONDS = 150.0
TESTS = "tests.txt"


@dataclass
class Run:
    out: Path
    device: str
    tiny: bool
    deadline: float  # on the clock of time.monotonic
    module: str = "benchmarks.gpu.contact_steps"
    path: list[Path] = field(default_factory=list)  # before everything else, to import from
    data: Fields = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)  # step -> when, on the same clock
    # Of those who write results.json: this thread and the one that looks every second.
    lock: threading.Lock = field(default_factory=threading.Lock)
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="contact-")))

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def events(self) -> Events:
        return Events(self.scratch / "events.jsonl")

    def say(self, text: str) -> None:
        print(f"[contact] {text}", flush=True)
        with (self.out / LOG).open("a") as log:
            log.write(f"[contact] {text}\n")

    def save(self) -> None:
        """results.json and table.md of all that is known."""
        with self.lock:
            events, garbage = self.events.read()
            self.data["steps"] = contact_table.collect(events)
            self.data["garbage"] = garbage[:5]
            write_whole(self.out / "results.json", contact_table.as_json(self.data))
            write_whole(self.out / "table.md", contact_table.table(self.data))


def environment(run: Run) -> dict[str, str]:
    """What was carried and the tree are imported first, nobody asks the network, nvcc is found."""
    root = str(Path(__file__).parents[2])
    toolkit = [] if shutil.which("nvcc") else [f"{os.environ.get('CUDA_HOME', CUDA)}/bin"]
    offline = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    # Next to nothing to compute is done by one thread: many would wait for each other.
    threads = {"OMP_NUM_THREADS": "1"} if run.tiny else {}
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ, **offline, **threads,
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *toolkit]),
        "PYTHONPATH": os.pathsep.join([*map(str, run.path), root, *inherited]),
    }  # fmt: skip


# ---- T0: the machine, and the package


def first_look(run: Run, folder: Path, *, build: bool) -> Any:
    """Facts of the machine; the carried package where it imports, else a build that has begun."""
    # On the PATH of this process too, which builds.
    os.environ["PATH"] = environment(run)["PATH"]
    run.data |= {"facts": facts(), "nvidia_smi": said(["nvidia-smi"])}
    peers = folder / "peers"
    run.path = [peers] if peers.is_dir() else []
    if not build:
        run.data["package"] = {"how": "as installed"}
        return None
    core = carry.core_of(folder)
    if isinstance(core, Path):
        try:
            use(run, core, "carried", serves=run.device == "cuda")
            return None
        # Whatever it is, the package can be built here.
        except Exception as error:
            core = f"{type(error).__name__}: {error}"
    run.say(f"no carried package: {core[-400:]}; building beside the first step")
    run.data["package"] = {"how": "is being built", "reason": core[-1000:]}
    try:
        return carry.build_here(folder, BUILT / "contact" / "core", architectures() or None)
    except OSError as error:
        run.data["package"]["reason"] += f"; {error}"
        return None


def use(run: Run, core: Path, how: str, *, serves: bool = False) -> None:
    """`serves`: RuntimeError of a core that does not serve the device, as under an older driver
    than its toolkit's; one that is built here may serve it."""
    site = BUILT / "contact" / "site"
    carry.lay_out(site, core)
    # Either raises where it does not import.
    info = carry.about(site)
    if serves and info["device_reason"]:
        raise RuntimeError(f"it does not serve the device: {info['device_reason']}")
    run.data["package"] = {"how": how, "build_info": info}
    run.path.insert(0, site)
    doctor = [sys.executable, "-m", "logitless.cli", "doctor"]
    answer = subprocess.run(doctor, env=environment(run), check=False, timeout=60,
                            capture_output=True, text=True)  # fmt: skip
    run.data["doctor"] = answer.stdout + answer.stderr[-1000:]
    run.say(f"the package is {how}")


def finish_build(run: Run, build: Any) -> None:
    """Waits for it, and says of a failure what the compiler said."""
    folder = BUILT / "contact" / "core"
    try:
        build.wait(max(min(BUILD_SECONDS, run.left / 2), 1.0))
        use(run, next(folder.glob("_core*.so")), "built here")
    # Without it the steps of torch alone can still be done.
    except Exception as error:
        log = carry.build_log(folder)
        end = log.read_text(errors="replace")[-1500:] if log.exists() else ""
        reason = f"{type(error).__name__}: {error}\n{end}"
        run.data["package"] = {"how": "none", "reason": reason}
        run.say(f"no package: {reason}")
    finally:
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGKILL)


# ---- the steps


def seconds_of(run: Run, step: Step) -> float:
    """What is left for it."""
    used = time.monotonic() - run.begun[step.name] if step.name in run.begun else 0.0
    return min(step.seconds - used, run.left - KEPT)


def ended(run: Run) -> set[str]:
    return {e["step"] for e in run.events.read()[0] if "key" not in e and e["status"] != "running"}


def end_step(run: Run, name: str, status: str, reason: str) -> None:
    run.events.add(step=name, status=status, reason=reason, at=time.time())


def work(run: Run, steps: Sequence[Step]) -> None:
    """These steps, in processes that each go on behind what the last one died of."""
    for _ in range(LIVES):
        for step in steps:
            if step.name not in ended(run) and seconds_of(run, step) < USEFUL:
                end_step(run, step.name, "skipped" if step.name not in run.begun else "timed out",
                         "no time left")  # fmt: skip
        todo = [step for step in steps if step.name not in ended(run)]
        if not todo or not one_process(run, todo):
            break
    for step in steps:
        if step.name not in ended(run):
            end_step(run, step.name, "failed", "its process died too often")
    run.save()


def one_process(run: Run, steps: Sequence[Step]) -> bool:
    """Whether another is of use."""
    before = len(run.events.read()[0])
    limits = {step.name: seconds_of(run, step) for step in steps}
    command = [
        sys.executable, "-m", "benchmarks.gpu.contact_worker", str(run.events.path),
        "--steps", ",".join(f"{name}:{limit:.1f}" for name, limit in limits.items()),
        "--device", run.device, "--module", run.module, *(["--tiny"] if run.tiny else []),
    ]  # fmt: skip
    total = min(START + sum(limits.values()) + END, run.left - KEPT / 2)
    stop = threading.Event()
    looking = threading.Thread(target=look, args=(run, stop), daemon=True)
    looking.start()
    try:
        end = watch(command, environment(run), total, run.out / LOG)
    finally:
        stop.set()
        looking.join()
    notice(run)
    events, _ = run.events.read()
    begun = {(e["step"], e["key"]) for e in events if "key" in e}
    over = {(e["step"], e["key"]) for e in events if "key" in e and e["status"] != "running"}
    for step, key in begun - over:
        run.events.add(step=step, key=key, status="failed", reason=end.reason, at=time.time())
    if end.code == 0:
        return False
    run.say(f"a process {end.reason.splitlines()[0]}")
    unfinished = [step.name for step in steps if step.name not in ended(run)]
    if (len(events) == before or not begun - over) and end.code != AGAIN and unfinished:
        # It died of no case: whoever comes next would die as well, in the same step.
        end_step(run, unfinished[0], "failed", end.reason)
    return True


def look(run: Run, stop: threading.Event) -> None:
    """Every second what has been found is in results.json."""
    seen = -1
    while not stop.wait(1.0):
        size = run.events.path.stat().st_size if run.events.path.exists() else 0
        if size != seen:
            notice(run)
            run.save()
            seen = size


def notice(run: Run) -> None:
    """When each step began: its time runs on when its process dies."""
    now, wall = time.monotonic(), time.time()
    for event in run.events.read()[0]:
        run.begun.setdefault(event["step"], now - max(wall - event["at"], 0.0))


def contact(
    run: Run, steps: Sequence[Step], folder: Path = carry.CARRY, *, build: bool = True
) -> bool:
    """Whether nothing failed."""
    run.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    run.data |= {"format": 1, "kind": "contact", "started": started, "device": run.device,
                 "tiny": run.tiny, "sources": sources_hash()}  # fmt: skip
    run.save()
    building = None
    try:
        building = first_look(run, folder, build=build)
    # A machine that cannot say what it is can be measured all the same.
    except Exception as error:
        run.say(f"T0: {type(error).__name__}: {error}")
        run.data["package"] = {"how": "none", "reason": str(error)}
    run.save()
    alone = [step for step in steps if not step.core]
    others = [step for step in steps if step.core]
    if building is not None:
        work(run, alone)
        finish_build(run, building)
        alone = []
    if run.data.get("package", {}).get("how") == "none":
        for step in others:
            end_step(run, step.name, "skipped", "there is no package")
        others = []
    if alone or others:
        work(run, [step for step in steps if step in alone or step in others])
    run.data["seconds"] = round(time.time() - started, 1)
    for name in (TESTS,):
        if (run.scratch / name).exists():
            shutil.copy2(run.scratch / name, run.out / name)
    run.save()
    print(contact_table.short(run.data), flush=True)
    shutil.rmtree(run.scratch, ignore_errors=True)
    return not contact_table.failures(run.data)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    lines = "".join(f"  {s.name} {s.seconds:4.0f} s  {s.what}\n" for s in STEPS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.contact", description=__doc__,
        epilog=f"steps, in their order:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=Path, help="folder of the results")
    add("--seconds", type=float, default=SECONDS, help=f"for everything ({SECONDS:.0f})")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="next to nothing to compute: times mean nothing")
    add("--only", default="", metavar="STEP,...", help="these steps")
    add("--carry", type=Path, default=carry.CARRY, help="what was carried along (build/carry)")
    add("--installed", action="store_true", help="measure the package that is installed here")
    add("--prepare", action="store_true", help="make what is carried along, and nothing else")
    add("--python", nargs="+", default=["python3.12"], help="of --prepare: for each of these")
    add("--architectures", default="90", help="of --prepare: compute capabilities")
    options = parser.parse_args(arguments)
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in NAMES:
            parser.error(f"no step {name!r}; there are {', '.join(NAMES)}")
    if options.out is None and not options.prepare:
        parser.error("--out DIR is needed: the folder of the results")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic()
    options = parse(arguments)
    if options.prepare:
        carry.prepare(options.python, options.architectures, options.carry)
        return 0
    run = Run(options.out.resolve(), options.device, options.tiny, deadline + options.seconds)
    steps = [step for step in STEPS if not options.only or step.name in options.only]
    good = contact(run, steps, options.carry.resolve(), build=not options.installed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
