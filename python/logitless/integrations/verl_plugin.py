"""What verl's entry point loads: an unknown verl is told, and runs on without this library."""

from __future__ import annotations

import logging

try:
    import logitless.integrations.verl  # noqa: F401
except ImportError as error:
    logging.getLogger(__name__).warning("%s", error)
