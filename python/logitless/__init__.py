"""logitless: log-prob, entropy, covariance and clipped policy losses without vocabulary-sized logits."""

from __future__ import annotations

from logitless._version import __version__

__all__ = ["__version__"]
