"""Adds this library's names to verl's tables, as its modules are imported."""

from __future__ import annotations

from logitless.integrations.verl import hooks, megatron
from logitless.integrations.verl.engine import replace_engine
from logitless.integrations.verl.head import replace_patch
from logitless.integrations.verl.losses import register_presets

_installed: list[str] = []


def install() -> None:
    """What importing this package does; a second call changes nothing.

    Raises ImportError where verl is missing or a version that is not known; a name that is not
    where it is looked for is one when verl imports the module.
    """
    hooks.check_version()
    if _installed:
        return
    _installed.append(hooks.verl_version())
    register_presets()
    hooks.when_imported(hooks.PATCHES, replace_patch)
    hooks.when_imported(hooks.ENGINES, replace_engine)
    hooks.when_imported(hooks.MEGATRON_ENGINES, megatron.replace_engine)
    for name in hooks.FUSED_FORWARDS:
        hooks.when_imported(name, megatron.replace_cross_entropy)
