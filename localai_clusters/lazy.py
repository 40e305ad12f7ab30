"""Names of a package that are loaded when they are first used, so that importing the package costs nothing."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, where: Mapping[str, str], *more: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A module's ``__getattr__`` and ``__dir__`` for ``where``: name -> submodule. ``more`` it has already."""

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{where[name]}"), name)

    return get, lambda: sorted([*where, *more])
