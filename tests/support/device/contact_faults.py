"""Steps for contact.py that raise, hang, crash, lie and lose the device; none needs torch."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import contact_worker
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place

# A case that hangs is ended so soon behind the end of its step.
contact_worker.GRACE = 0.3
DEVICE: dict[str, bool] = {"lost": False}
contact_worker.lost = lambda place: DEVICE["lost"]


def good(value: float = 1.0) -> Callable[[], Fields]:
    return lambda: {"ms": value, "tflops": float("nan")}


def fails(error: Exception) -> Callable[[], Fields]:
    def run() -> Fields:
        raise error

    return run


def raises(place: Place) -> Cases:
    yield "before", good()
    yield "raises", fails(RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"))
    yield "not here", fails(Leave("needs a GPU"))
    yield "no dictionary", lambda: 3  # type: ignore[return-value]
    yield "after", good(2.0)


def crashes(place: Place) -> Cases:
    def crash() -> Fields:
        os.write(1, b"last words\n")
        os._exit(9)

    yield "before", good()
    yield "crashes", crash
    yield "after", good()


def loses_the_device(place: Place) -> Cases:
    def lose() -> Fields:
        DEVICE["lost"] = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    yield "loses", lose
    # In another process.
    yield "after", lambda: {"ms": 1.0, "lost": DEVICE["lost"]}


def writes_garbage(place: Place) -> Cases:
    def garbage() -> Fields:
        with (place.folder / "events.jsonl").open("ab") as file:
            file.write(b'{"step": "T5", "half a li\n\xff\xfe\x00\n[1, 2]\n{"step": "T5"}\n')
        return {"ms": "fast", "errors": {1: object()}, "step": "T9", "status": "done"}

    yield "garbage", garbage
    yield "after", good()


def hangs(place: Place) -> Cases:
    def hang() -> Fields:
        process = subprocess.Popen(["sleep", "300"])
        (Path(os.environ["CONTACT_PID"])).write_text(str(process.pid))
        time.sleep(300)
        return {}

    yield "before", good()
    yield "hangs", hang
    yield "never", good()


def broken(place: Place) -> Cases:
    raise ValueError("no inputs")
    yield "never", good()


def dies_at_once(place: Place) -> Cases:
    os._exit(7)
    yield "never", good()


def last(place: Place) -> Cases:
    yield "last", good(3.0)


STEPS: dict[str, Callable[[Place], Cases]] = {
    "T1": raises, "T2": crashes, "T4": loses_the_device, "T3": writes_garbage, "T5": hangs,
    "T6": broken, "T8": dies_at_once, "T7": last, "T9": last, "T10": last, "T11": last, "T12": last,
    "T13": last,
}  # fmt: skip


def waits() -> Fields:
    time.sleep(0.2)
    return {"ms": 1.0}


def slow(place: Place) -> Cases:
    for i in range(100):
        yield f"case {i}", waits


if os.environ.get("CONTACT_SLOW"):
    STEPS = dict.fromkeys(STEPS, slow)
