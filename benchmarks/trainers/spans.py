"""Where the time of a step goes: its phases, and in each the model's body and what is beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.harness import peak_memory

GENERATION, SCORING, UPDATE, OPTIMIZER, REST = PHASES = (
    "generation", "scoring", "update", "optimizer", "rest"
)  # fmt: skip
# Layers up to the states that the head reads; head, drawing and loss.
BODY, BESIDE = "body", "head"
# Phases of which the head has a part.
WITH_HEAD = (GENERATION, SCORING, UPDATE)


def clock_of(device: str) -> Callable[[], float]:
    """Seconds, when all that was asked of the device is done."""
    if device == "cpu":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


class Spans:
    """Seconds by (phase, part); what runs inside of something else is not the other's."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self._clock, self._stack, self._since = clock, [(REST, BESIDE)], clock()

    def restart(self) -> None:
        self.seconds, self._since = {}, self._clock()

    def push(self, phase: str | None, part: str) -> None:
        """phase None: the one that is running."""
        self._charge()
        self._stack.append((phase or self._stack[-1][0], part))

    def pop(self) -> None:
        self._charge()
        self._stack.pop()

    def become(self, phase: str | None, part: str) -> None:
        """From now on what runs is another."""
        self.push(phase, part)
        self._stack[-2:] = self._stack[-1:]

    @contextmanager
    def of(self, phase: str | None, part: str = BESIDE) -> Iterator[None]:
        depth = len(self._stack)
        self.push(phase, part)
        try:
            yield
        finally:
            self._charge()
            del self._stack[depth:]

    def within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with self.of(phase):
                return function(*args, **options)

        return run

    def shares(self) -> dict[str, float]:
        """By name: "update body", and "optimizer" where a phase has no parts."""
        self._charge()
        found = dict.fromkeys(NAMES, 0.0)
        for (phase, part), seconds in self.seconds.items():
            found[f"{phase} {part}" if phase in WITH_HEAD else phase] += seconds
        return found

    def _charge(self) -> None:
        now = self._clock()
        key = self._stack[-1]
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self._since
        self._since = now


NAMES = tuple(
    name
    for phase in PHASES
    for name in ([f"{phase} {x}" for x in (BODY, BESIDE)] if phase in WITH_HEAD else [phase])
)


def watch_body(body: Any, spans: Spans) -> None:
    """The body's forward, and its backward: from the gradient of its states on to the end of the
    phase."""

    def after(_module: Any, _args: Any, output: Any) -> None:
        spans.pop()
        states = output[0]
        if states.requires_grad:
            states.register_hook(lambda _: spans.become(None, BODY))

    body.register_forward_pre_hook(lambda *_: spans.push(None, BODY))
    body.register_forward_hook(after)


class Step(NamedTuple):
    """One step of a trainer: generation, scoring, update."""

    seconds: float
    cpu: float  # of all threads of the process
    parts: dict[str, float]
    peak_bytes: int  # of the process; on a GPU, allocated there


class Meter:
    def __init__(self, device: str = "cpu") -> None:
        self._clock, self._on_cpu = clock_of(device), device == "cpu"
        self.spans = Spans(self._clock)
        self.steps: list[Step] = []

    def begin(self) -> None:
        gc.collect()
        if self._on_cpu:
            peak_memory.reset_peak()
        else:
            torch.cuda.reset_peak_memory_stats()
        self._cpu, self._wall = time.process_time(), self._clock()
        self.spans.restart()

    def end(self) -> None:
        parts = self.spans.shares()
        seconds, cpu = self._clock() - self._wall, time.process_time() - self._cpu
        peak = peak_memory.peak() if self._on_cpu else torch.cuda.max_memory_allocated()
        self.steps.append(Step(seconds, cpu, parts, peak))
