"""What a failed test is told with: the calls that its assert made, with what they gave, and the statement itself."""

from __future__ import annotations

import ast
import builtins
import re
import traceback
import types
from typing import Any

from rfx_agent.tools.box.remote import Far, Remotes

__all__ = ["FILE", "Seen", "prepared", "statement_at", "statement_in"]

FILE = "<test"
_SHOWN = 200  # characters of one value
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Seen:
    """The last call of the code that an assert made."""

    NAME = "_rfx_call_"  # two underscores before it would become another name within a class

    def __init__(self, far: Remotes) -> None:
        self._far = far
        self._last = ""

    def clear(self) -> None:
        """Forget: the next test runs."""
        self._last = ""
        self._far.refused = ""

    def call(self, text: str, function: Any, *args: Any, **named: Any) -> Any:
        """Call ``function``, and where it is the code's, keep what it gave."""
        if not isinstance(function, Far):
            return function(*args, **named)
        shown = [_short(x) for x in args] + [f"{name}={_short(x)}" for name, x in named.items()]
        self._last = ""  # should it raise, an earlier call is not what failed
        value = function(*args, **named)
        self._last = f"{text}({', '.join(shown)}) gave {_short(value)}"
        return value

    def told(self) -> str:
        """What the last call gave: an assert that loops over cases fails at the last."""
        return self._last


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException as error:  # noqa: BLE001  # the code's own __repr__
        text = f"<{type(error).__name__}>"
    text = _ADDRESS.sub("", text)  # another at each run
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class _Told(ast.NodeTransformer):
    """Calls inside an assert go through ``Seen.call``."""

    def __init__(self) -> None:
        self._inside = False

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        before, self._inside = self._inside, True
        node.test = self.visit(node.test)
        self._inside = before
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        text = ast.unparse(node.func)
        self.generic_visit(node)
        if not self._inside or not _foreign(node.func):
            return node
        name = ast.Name(Seen.NAME, ast.Load())
        made = ast.Call(name, [ast.Constant(text[:_SHOWN]), node.func, *node.args], node.keywords)
        return ast.copy_location(made, node)


def _foreign(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return not hasattr(builtins, function.id)
    return isinstance(function, ast.Attribute)


_trees: dict[str, ast.Module] = {}


def prepared(source: str) -> types.CodeType:
    """``source``, compiled, its asserts made to tell what they saw."""
    name = f"{FILE} {len(_trees)}>"
    _trees[name] = ast.parse(source, name)
    tree = ast.fix_missing_locations(_Told().visit(ast.parse(source, name)))
    return compile(tree, name, "exec")


def statement_at(place: traceback.FrameSummary) -> str:
    """The innermost statement at a failing line of the tests."""
    return statement_in(_trees[place.filename], place.lineno or 0)


def statement_in(tree: ast.Module, line: int) -> str:
    """The innermost statement of ``tree`` at ``line``, or ""."""
    found = ""
    for node in ast.walk(tree):  # from the outside in
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            found = ast.unparse(node)
    return found
