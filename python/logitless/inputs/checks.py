"""Checks of plain arguments, which the options of calls and the dataclasses of specs share.

Each message names the argument, what it must be and what came. A number is Python's or NumPy's, or
an array of no dimension on the CPU; True and False are none.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import torch

# Beyond it an int has no float.
LARGEST = sys.float_info.max
INT64 = 1 << 63
# Characters of a value in a message.
LONGEST = 200


def is_tensor(x: object) -> TypeGuard[torch.Tensor]:
    """Whether x is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return x is not None and torch is not None and isinstance(x, torch.Tensor)


def is_tracing() -> bool:
    """Whether torch.compile makes a graph of this call."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def require(name: str, value: Any, ok: Callable[[float], bool], expected: str) -> float:
    """The finite number behind `value`."""
    x = value if type(value) in (float, int) else _number(name, value, "a number")
    if not (-LARGEST <= x <= LARGEST and ok(x)):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return x


def finite(name: str, value: Any) -> float:
    return require(name, value, lambda _: True, "finite")


def positive(name: str, value: Any) -> float:
    return require(name, value, lambda x: x > 0.0, "finite and > 0")


def not_negative(name: str, value: Any) -> float:
    return require(name, value, lambda x: x >= 0.0, "finite and >= 0")


def whole(name: str, value: Any, *, least: int = 0, below: int = INT64) -> int:
    """The int behind `value`, in [least, below); `below` is a power of two."""
    x = value if type(value) is int else _number(name, value, "an int")
    if not isinstance(x, int):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    if not least <= x < below:
        end = f"2^{below.bit_length() - 1}"
        raise ValueError(f"{name} must be an int >= {least} and below {end}, got {shown(value)}")
    return x


def flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def choice(name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def instance(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        expected = f"one of {names}" if len(kinds) > 1 else f"a {names}"
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")


def nonsense(a: str, b: str, why: str) -> ValueError:
    """Two fields that contradict each other; `a` and `b` are written name=value."""
    return ValueError(f"{a} makes no sense with {b}: {why}")


def plain_fields(part: Any, *names: str) -> None:
    """NumPy's numbers among the fields (or these) of a frozen dataclass become Python's, which are
    written and read back as they are."""
    for name in names or tuple(type(part).__dataclass_fields__):
        value = getattr(part, name)
        if type(value) in _PLAIN:
            continue
        x = bool(value) if isinstance(value, np.bool_) else scalar(value)
        if x is not None:
            object.__setattr__(part, name, x)


def scalar(value: Any) -> int | float | None:
    """The Python number behind a number of any kind; None where it is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
        return scalar(value[()])
    if is_tensor(value) and not value.is_nested and value.ndim == 0 and _readable(value):
        return scalar(value.item())
    return None


def shown(value: object) -> str:
    """`value` for a message: short, whatever it is, and without waiting for a device."""
    if is_tensor(value) or isinstance(value, np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        if is_tensor(value) and value.is_nested:
            return f"a nested tensor of {dtype}"
        if is_tensor(value) and value.layout is not _torch().strided:
            return f"a tensor of {dtype} with layout {value.layout}"
        where = f" on {value.device}" if is_tensor(value) and value.device.type != "cpu" else ""
        kind = "a tensor" if is_tensor(value) else "an array"
        return f"{kind} of {dtype} {list(value.shape)}{where}"
    try:
        text = _SHORT.repr(value)
    except Exception:
        # an int of more digits than Python writes, or a __repr__ of somebody's that fails
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _number(name: str, value: Any, expected: str) -> int | float:
    x = scalar(value)
    if x is not None:
        return x
    if is_tensor(value) and not value.is_nested and value.ndim == 0:
        if value.requires_grad:
            raise ValueError(
                f"{name} is data and gets no gradient, got a tensor with requires_grad=True; "
                f"pass {name}.detach()"
            )
        if value.device.type != "cpu":
            raise TypeError(
                f"{name} must be {expected} that the CPU has, got {shown(value)}; "
                f"pass {name}.item(), which waits for it"
            )
    raise TypeError(f"{name} must be {expected}, got {shown(value)}")


def _readable(tensor: torch.Tensor) -> bool:
    numeric = not tensor.is_complex() and tensor.dtype is not _torch().bool
    return numeric and tensor.device.type == "cpu" and not tensor.requires_grad


def _torch() -> Any:
    return sys.modules["torch"]


_PLAIN = (float, int, bool, str, tuple, type(None))
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = LONGEST, LONGEST, 60
_SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxlevel = 8, 8, 8, 2
