"""A bundled reward: the right mathematical answer, by the math-verify package."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MathAnswers:
    """float(math_verify.verify(math_verify.parse(row[key]), math_verify.parse(completion))).

    key: the key of a prompt's row that has the right answer, as LaTeX (with or without its dollars)
    or as an expression. An answer that has nothing to read is wrong; a right answer that cannot be
    read is an error. math-verify limits the time of a call by a signal, which only the main thread
    can set: under `task.reward_timeout` that is the limit instead.
    """

    key: str = "answer"
    _library: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            library = importlib.import_module("math_verify")
        except ImportError as error:
            raise ModuleNotFoundError(
                "the reward 'math' needs the math-verify package: pip install 'logitless[math]'"
            ) from error
        object.__setattr__(self, "_library", library)

    def __call__(self, prompt: Any, completion: str, **row: Any) -> float:
        if self.key not in row:
            raise ValueError(f"the row of a prompt must have '{self.key}', got {', '.join(row)}")
        gold = str(row[self.key])
        right = self._parse(gold) or self._parse(f"${gold}$")
        if not right:
            raise ValueError(f"the right answer must be mathematics, got {gold!r}")
        limit = {} if _main_thread() else {"timeout_seconds": None}
        return float(self._library.verify(right, self._parse(completion), **limit))

    def _parse(self, text: str) -> Any:
        limit = {} if _main_thread() else {"parsing_timeout": None}
        return self._library.parse(text, **limit)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
