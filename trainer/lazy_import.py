"""Modules that are imported at their first use."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class LazyImport(ModuleType):
    """A module that is imported when one of its names is used.

    The keys of some mappings are the choices of a setting. Listing them, for a schema or for help, must not
    wait seconds for torch or Optuna, which only the values of these mappings use. Type checkers see a usual
    import, under ``TYPE_CHECKING``.
    """

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # so that the next use costs nothing
        return value
