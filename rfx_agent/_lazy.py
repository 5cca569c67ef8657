"""Public names of a package that are loaded when they are first used, because their files bring a heavy library.

Where that library is not installed, the name is a class that says so when it is called or derived from. So ``help``,
``hasattr`` and ``import *`` work on a base installation. (An exception could not say it: Python puts its own message
in the place of an ``AttributeError`` of ``from ... import``.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from rfx_agent.errors import ConfigError

__all__ = ["lazily"]


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``.

    Args:
        package: its name, ``__name__``.
        names: the module below ``package`` that each name is in; it raises ``ConfigError`` where its extra is missing.
    """

    def get(name: str) -> Any:
        if name in names:
            try:
                return getattr(import_module(f"{package}.{names[name]}"), name)
            except ConfigError as missing:
                return _stand_in(package, name, missing)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def known() -> list[str]:
        return sorted({*vars(import_module(package)), *names})

    return get, known


def _stand_in(package: str, name: str, missing: ConfigError) -> type:
    """What stands for ``name`` where its library is missing."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigError(f"{name}: {missing}") from missing

    members = {"__new__": refuse, "__init_subclass__": classmethod(refuse), "__module__": package}
    return type(name, (), {**members, "__doc__": f"Unavailable: {missing}."})
