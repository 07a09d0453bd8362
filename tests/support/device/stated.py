"""Two kinds of tensors on a machine that has one: those of the host, and those of "the device".

The code under test says for each tensor that it makes where: a device object, taken from a tensor
or a policy, is the device; the text "cpu" is the host. What it makes for the host is a `Host` here,
and to combine one with a tensor of the device is an error, as it is where the device is a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint",
        "randn", "randperm", "tensor", "zeros",
    )
}  # fmt: skip
# They take tensors of both.
MOVES = {Tensor.to, Tensor.cpu, Tensor.copy_}


class Host(Tensor):
    """Whatever follows from one is one."""


class Stated(TorchFunctionMode):
    """Watches calls of torch by the files of a folder.

    A factory call there without a device is an AssertionError with file and line, and so is one
    that mixes host and device. `made`: (file, whether on the host) of what was made.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self.made = f"{folder}/", set[tuple[str, bool]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        file, line = _caller()
        if not file.startswith(self._folder):
            # the library and transformers have tensors as they come, without a mark
            return func(*_unmarked(args), **_unmarked(kwargs))
        place = f"{file.removeprefix(self._folder)}:{line}"
        if func in FACTORIES:
            device = kwargs.get("device")
            assert device is not None, f"{place}: torch.{func.__name__} without a device"
            self.made.add((Path(file).name, isinstance(device, str)))
            made = func(*args, **kwargs)
            return made.as_subclass(Host) if isinstance(device, str) else made
        found = [x for x in _tensors((args, kwargs)) if x.ndim]
        on_host = [isinstance(x, Host) for x in found]
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in args[1:]):
            return func(*_unmarked(args), **kwargs).as_subclass(Host)
        if func is Tensor.to and any(isinstance(x, torch.device) for x in args[1:]):
            return func(*_unmarked(args), **kwargs)
        mixed = any(on_host) and not all(on_host)
        assert not mixed or func in MOVES, f"{place}: {func} of tensors of the host and the device"
        return func(*args, **kwargs)


def _caller() -> tuple[str, int]:
    """Of torch's function."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return _tensors(list(tree.values()))
    if isinstance(tree, (list, tuple)):
        return [x for part in tree for x in _tensors(part)]
    return []


def _unmarked(tree: Any) -> Any:
    if isinstance(tree, Host):
        return tree.as_subclass(Tensor)
    if type(tree) is dict:
        return {key: _unmarked(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_unmarked(x) for x in tree)
    return tree
