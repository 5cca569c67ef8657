"""Reads tests as their author gave them. Tests are the deployment's own: they are parsed here, and never run here."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import sys
from collections.abc import Iterable
from typing import Any

from rfx_agent.errors import ConfigError
from rfx_agent.tools.trial import Trial

__all__ = ["read_cases", "read_tests"]

_MOST = 1024 * 1024  # characters of tests
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BINDS = (*_FUNCTIONS, ast.ClassDef)
_CASES = {"TestCase", "IsolatedAsyncioTestCase"}
_JUDGES = (ast.Compare, ast.BoolOp, ast.UnaryOp)


def read_cases(name: str, cases: Iterable[tuple[tuple[Any, ...], Any]]) -> list[str]:
    """One assert a case.

    Raises:
        ConfigError: no identifier, no case, or a value that cannot be written in Python source.

    Example:
        >>> read_cases("double", [((2,), 4)])
        ['assert double(2) == 4']
    """
    if not name.isidentifier():
        raise ConfigError(f"TestsVerifier: tests is {name!r} with cases; give the name of a function")
    made = []
    for i, case in enumerate(cases):
        if not isinstance(case, (tuple, list)) or len(case) != 2 or not isinstance(case[0], (tuple, list)):
            raise ConfigError(f"TestsVerifier: cases[{i}] is {case!r}; give ((arguments, ...), result)")
        args, result = case
        for value in (*args, result):
            if not _writable(value):
                raise ConfigError(
                    f"TestsVerifier: cases[{i}] has a {type(value).__name__}; give numbers, text, lists, tuples, sets "
                    "and dicts, or write the test as an assert"
                )
        made.append(f"assert {name}({', '.join(map(repr, args))}) == {result!r}")
    if not made:
        raise ConfigError("TestsVerifier: cases is empty; give at least one")
    return made


def _writable(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return False


def read_tests(tests: Any, names: tuple[str, ...], *, installed: bool = False) -> Trial:
    """The tests of ``tests``, one top-level statement each with what stands before it.

    What stands behind ``if __name__ == "__main__"`` is read as if it stood alone, and a call of a test runner is left
    out: each test is run here.

    Args:
        tests: as ``TestsVerifier`` takes them.
        names: names that are the code's although Python has them too.
        installed: whether the sandbox has more modules than the standard library.

    Raises:
        ConfigError: they cannot be read, or test nothing.
    """
    if isinstance(tests, str):
        body = _parsed(tests)
    elif isinstance(tests, (list, tuple)) and all(isinstance(x, str) for x in tests):
        parsed = [_parsed(one) for one in tests]
        defined = {x.name for part in parsed for x in part if isinstance(x, _BINDS)}
        body = [statement for part in parsed for statement in _asserted(part, defined)]
    else:
        raise ConfigError(f"TestsVerifier: tests is a {type(tests).__name__}; give Python source or a list of asserts")
    _check(body, installed=installed)
    body = [ast.Import([ast.alias(name)]) for name in sorted(_modules(body) - set(names))] + body
    defined = {x.name for x in body if isinstance(x, _BINDS)}
    sources: list[str] = []
    waiting: list[str] = []
    count = 0
    for statement in body:
        statement = _judging(statement)
        waiting.append(ast.unparse(statement))
        if _tests(statement, defined):
            sources.append("\n".join(waiting))
            waiting, count = [], count + 1
    cases = _case_classes(body)
    count += sum(_held(x, cases) for x in body)
    free = _free(body) - set(names)
    if not count:
        raise ConfigError("TestsVerifier: tests has no assert, no call and no test function; give at least one test")
    if not free and not names:
        raise ConfigError(
            "TestsVerifier: tests uses no name that the code would define; if the code defines a name that Python has "
            "too, say so: names=('max',)"
        )
    made = [(source, True) for source in sources] + [("\n".join(waiting), False)] * bool(waiting)
    functions = tuple(x.name for x in body if isinstance(x, ast.FunctionDef) and _held(x, cases))
    return Trial(tuple(made), count, functions, names=names, free=tuple(sorted(_used(body))))


def _parsed(source: str) -> list[ast.stmt]:
    if len(source) > _MOST:
        raise ConfigError(f"TestsVerifier: tests has {len(source)} characters; give at most {_MOST}")
    try:
        compile(source.strip(), "<tests>", "exec", dont_inherit=True)  # finds what the grammar lets through
        return _unguarded(ast.parse(source.strip()).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"TestsVerifier: tests cannot be read as Python: {error}: {source[:80]!r}") from error


def _asserted(body: list[ast.stmt], defined: set[str]) -> list[ast.stmt]:
    """A list's entry that is one expression is asserted; a call of what the tests define runs as it is."""
    if len(body) != 1 or not isinstance(body[0], ast.Expr) or _tests(body[0], defined):
        return body
    return [ast.copy_location(ast.Assert(body[0].value, None), body[0])]


def _judging(statement: ast.stmt) -> ast.stmt:
    """A comparison that stands alone is meant as an assert."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, _JUDGES):
        return ast.copy_location(ast.Assert(statement.value, None), statement)
    return statement


def _tests(statement: ast.stmt, defined: set[str]) -> bool:
    """Whether it tests something when it runs: it asserts, or calls what the tests define."""
    if isinstance(statement, _BINDS):
        return False
    if isinstance(statement, ast.Expr):
        called = statement.value.func if isinstance(statement.value, ast.Call) else None
        if isinstance(called, ast.Attribute):
            return called.attr.startswith("assert")  # a mock's
        return isinstance(called, ast.Name) and called.id in defined
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _held(statement: ast.stmt, cases: set[str]) -> int:
    """Tests that a definition holds, which run after all statements."""
    if isinstance(statement, _FUNCTIONS):
        return statement.name.startswith("test_") and not _needed(statement)
    if isinstance(statement, ast.ClassDef) and (statement.name in cases or statement.name.startswith("Test")):
        return sum(isinstance(x, _FUNCTIONS) and x.name.startswith("test") for x in statement.body)
    return 0


def _case_classes(body: list[ast.stmt]) -> set[str]:
    """Names of the classes that are ``unittest`` cases, of the tests' own or imported under another name."""
    found = set(_CASES)
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "unittest":
            found |= {x.asname for x in statement.names if x.asname and x.name in _CASES}
        if isinstance(statement, ast.ClassDef):
            bases = {x.attr if isinstance(x, ast.Attribute) else getattr(x, "id", "") for x in statement.bases}
            found |= {statement.name} if bases & found else set()
    return found


def _needed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Its parameters that somebody must give."""
    given = function.args
    positional = [x.arg for x in (*given.posonlyargs, *given.args)]
    named = [x.arg for x, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    return positional[: len(positional) - len(given.defaults)] + named


def _unguarded(body: list[ast.stmt]) -> list[ast.stmt]:
    """``body`` with what a script does when it is run, but for calls of a test runner."""
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in _GUARDS:
            kept += _unguarded(statement.body)
        elif not (isinstance(statement, ast.Expr) and _RUNNER.search(ast.unparse(statement))):
            kept.append(statement)
    return kept


_GUARDS = ("__name__ == '__main__'", "'__main__' == __name__")
_RUNNER = re.compile(r"\A(?:(?:sys\.)?exit\()?(?:unittest|pytest)\.main\(")


_SKIPS = re.compile(r"\b(?:expectedFailure|skip\w*)\b")
_TRUE = (ast.Tuple, ast.GeneratorExp, ast.Lambda)


def _check(body: list[ast.stmt], *, installed: bool) -> None:
    """Refuse what would test nothing, or could not run whatever the code is."""
    nodes = [x for s in body for x in ast.walk(s)]
    called = {x.func.id for x in nodes if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Assert) and isinstance(node.test, _TRUE) and getattr(node.test, "elts", True):
            raise ConfigError(
                f"TestsVerifier: tests asserts {ast.unparse(node.test)[:80]!r}, which is true whatever the code gives; "
                "assert a comparison"
            )
        marks = [ast.unparse(x) for x in getattr(node, "decorator_list", ())]
        if put := [x for x in marks if _SKIPS.search(x)]:
            raise ConfigError(f"TestsVerifier: tests has a test marked {put[0][:80]!r}; take the test out")
    for statement in body:
        if isinstance(statement, _FUNCTIONS) and statement.name.startswith("test_"):
            if any(isinstance(x, (ast.Yield, ast.YieldFrom)) for x in ast.walk(statement)):
                raise ConfigError(
                    f"TestsVerifier: tests has {statement.name}, a generator, which would test nothing; make it a "
                    "plain function"
                )
            if (needed := _needed(statement)) and statement.name not in called:
                raise ConfigError(
                    f"TestsVerifier: tests has {statement.name}, which needs {', '.join(needed)}, and nothing calls "
                    "it; call it, or write one assert a case"
                )
    if installed:
        return
    for one in [x for x in nodes if isinstance(x, (ast.Import, ast.ImportFrom))]:
        wanted = [x.name for x in one.names] if isinstance(one, ast.Import) else ["." * one.level + (one.module or "")]
        if other := [x for x in wanted if x.partition(".")[0] not in sys.stdlib_module_names]:
            raise ConfigError(
                f"TestsVerifier: tests imports {other[0]!r}, which is not in the standard library; names of the code "
                "need no import, and OSSandbox(packages=...) has what else is needed"
            )


def _used(body: list[ast.stmt]) -> set[str]:
    """Global names that the tests read and do not bind."""
    source = ast.unparse(ast.Module(body, []))
    tables = [symtable.symtable(source, "<tests>", "exec")]
    bound = {x.get_name() for x in tables[0].get_symbols() if x.is_assigned() or x.is_imported() or x.is_namespace()}
    read: set[str] = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outermost = table.get_type() == "module"
        read |= {x.get_name() for x in table.get_symbols() if x.is_referenced() and (outermost or x.is_global())}
    return read - bound


def _modules(body: list[ast.stmt]) -> set[str]:
    """Modules of the standard library that the tests use and forgot to import: the code's ``math`` is not to be asked
    whether two numbers are close."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    used = {x.value.id for x in nodes if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name)}
    called = {x.func.id for x in nodes if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
    return (used - called) & _used(body) & sys.stdlib_module_names


def _free(body: list[ast.stmt]) -> set[str]:
    return {name for name in _used(body) if not hasattr(builtins, name)}
