"""The tests, a folder for each room of the package; what they share is in support/."""

from __future__ import annotations
