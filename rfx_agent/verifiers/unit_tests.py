"""Verifier of code: it passes when every test passes, in a sandbox."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rfx_agent.checks import flags, shown
from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.tools.choice import BETTER, AnySandbox, SandboxName, best_sandbox, sandbox_of
from rfx_agent.tools.prompts import fenced_blocks
from rfx_agent.tools.trial import Trial, TrialResult
from rfx_agent.verifiers.base import NamedVerifier, aside, clip, expected_of, shorten
from rfx_agent.verifiers.unit_tests_read import read_cases, read_tests

__all__ = ["TestsVerifier"]

_PYTHON = ("python", "py", "python3")
_LONGEST = 100_000  # characters of code: more was not written by a model that was well
_SHOWN = 260  # characters of a test, of what it got, of an error: all three stay below 800
_NO_CODE = "There is no Python code in the reply. Reply with one Python code block."


class TestsVerifier(NamedVerifier):
    """Passes when the code in a rollout's text passes every test.

    The code is the last fenced block that defines a name of the tests, else the last fenced block, else the whole
    text. Code and tests run in two processes that do not trust each other: the tests call the code's functions by
    value and compare what comes back on their own side. So printing a verdict, leaving early, or an object that
    equals everything is no pass, and the code never sees what a test expects. What is held and what is not is listed
    in the documentation of code.

    A failed test is the verdict's ``feedback``: the statement, what the call gave, the error and its line; at most
    800 characters. Tests that come from ``step.expected`` are not quoted in it.

    Args:
        tests: Python source with asserts, test functions or ``unittest`` classes; or a list of asserts and
            expressions; or the name of a function, with ``cases``. None takes ``step.expected``, in any of the first
            two forms. The standard library can be imported.
        cases: pairs of arguments (a tuple) and result, for a function's name.
        sandbox: ``"bubblewrap"`` (a CPython), ``"monty"`` (a subset of Python), or one of your own with other limits.
            By default bubblewrap where it works, else Monty. Verdicts say which of them ran.
        before: source that stands before the code, such as the imports that the prompt gave.
        names: names that the code defines although Python has them too, such as ``("max",)``.
        operators: believe the code's own objects when they are compared and reckoned with plain values, as a test of
            a class with ``__eq__`` or ``__add__`` needs. Then a pass is that class's word.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work; tests that cannot be read, or test nothing; a sandbox that does not
            work here.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> verifier = TestsVerifier(["double(2) == 4", "double(0) == 0"], sandbox="monty")
        >>> verifier.verify(Step.of("Write double(x)."), Rollout("def double(x):\\n    return x + 2")).feedback
        'This test fails: assert double(0) == 0\\ndouble(0) gave 2'
    """

    __test__ = False  # no test of pytest's, whatever its name

    def __init__(
        self,
        tests: str | Sequence[str] | None = None,
        cases: Iterable[tuple[tuple[Any, ...], Any]] | None = None,
        *,
        sandbox: AnySandbox | SandboxName | None = None,
        before: str = "",
        names: Iterable[str] = (),
        operators: bool = False,
        name: str = "tests",
    ) -> None:
        super().__init__(name)
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ConfigError(f"TestsVerifier: names is {shown(names)}; give a list of Python identifiers")
        flags("TestsVerifier", operators=operators)
        self._names, self._before, self._operators = tuple(names), before, operators
        if bad := [x for x in self._names if not str(x).isidentifier()]:
            raise ConfigError(f"TestsVerifier: names has {bad[0]!r}; give Python identifiers")
        # A list is copied: it is the caller's to change.
        self.expected: Any = list(tests) if isinstance(tests, (list, tuple)) else tests
        self._trial = None
        if cases is not None:
            if not isinstance(tests, str):
                raise ConfigError("TestsVerifier: cases go with the name of one function; give it as tests")
            self.expected = read_cases(tests, cases)
            self._names = (*self._names, tests)
        self.sandbox = best_sandbox() if sandbox is None else sandbox_of(sandbox, who="TestsVerifier")
        if self.expected is not None:
            self._trial = self._read(self.expected)

    def __repr__(self) -> str:
        return f"TestsVerifier(name={self.name!r}, sandbox={self.sandbox!r})"  # never the tests

    def check_step(self, step: Step) -> None:
        """There must be tests, and such as can be run."""
        self._trial_of(step)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``.

        Raises:
            ToolError: the sandbox could not be started.
        """
        trial = self._trial_of(step)
        code = _code(rollout.said, trial)
        if isinstance(code, Verdict):
            return code
        return self._verdict(code, rollout.said, self.sandbox.test(code, trial))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop. Cancelled, it stops what it runs."""
        trial = self._trial_of(step)
        code = await aside(len(rollout.text), _code, rollout.said, trial)
        if isinstance(code, Verdict):
            return code
        return self._verdict(code, rollout.said, await self.sandbox.atest(code, trial))

    def _read(self, tests: Any) -> Trial:
        trial = read_tests(tests, self._names, installed=bool(getattr(self.sandbox, "packages", ())))
        return replace(trial, before=self._before, operators=self._operators)

    def _trial_of(self, step: Step) -> Trial:
        return self._trial or self._read(expected_of(self, step))

    def _verdict(self, code: str, text: str, result: TrialResult) -> Verdict:
        ran = f"({self.sandbox.what})"
        if result.ok:
            many = "the test passes" if result.total == 1 else f"all {result.total} tests pass"
            return Verdict(True, answer=code, score=1.0, reason=f"{many} {ran}")
        if result.unsupported:
            reason = f"{self.sandbox.what}, cannot judge this code: {clip(result.error)}; a CPython can: {BETTER}"
            return Verdict(False, answer=shorten(code), reason=reason, kind="unchecked")
        score = min(result.passed, result.total) / max(result.total, 1)
        if result.unreadable:
            said = f"The code cannot be read as Python: {_placed(result, code)}"
            if "```" not in text and "~~~" not in text:
                said = f"{_NO_CODE} Read as a whole, it is not Python: {_placed(result, code)}"
            reason = f"the code cannot be read as Python: {clip(result.error)} {ran}"
            return Verdict(False, answer=shorten(code), score=0.0, reason=reason, feedback=said, kind="malformed")
        if not result.loaded:
            said = f"The code fails before any test: {_placed(result, code)}"
            reason = f"the code fails before any test: {clip(result.error)} {ran}"
            return Verdict(False, answer=shorten(code), score=0.0, reason=reason, feedback=said, kind="wrong")
        what = clip(result.failed, _SHOWN)
        detail = _placed(result, code) if result.error else result.got
        reason = f"{result.passed} of {result.total} tests pass; this one fails: {what}; {clip(detail)} {ran}"
        lines = [f"This test fails: {what}" if self._trial is not None else "A test fails."]
        if result.got and self._trial is not None:
            lines.append(clip(result.got, _SHOWN))
        if result.error:
            lines.append(f"Error: {_placed(result, code)}")
        return Verdict(False, answer=shorten(code), score=score, reason=reason, feedback="\n".join(lines), kind="wrong")


def _code(text: str, trial: Trial) -> str | Verdict:
    """The code in what a model said, or why there is none to be run."""
    text = text.replace("\r\n", "\n")
    blocks = fenced_blocks(text)
    python = [body for tag, body in blocks if tag in _PYTHON] or [body for tag, body in blocks if not tag]
    if blocks and not python:
        return _no_code()
    names = "|".join(map(re.escape, trial.free)) or "(?!)"
    defines = re.compile(rf"^[ \t]{{0,8}}(?:(?:async )?def|class) (?:{names})\b|^(?:{names}) *=", re.MULTILINE)
    short = (body for body in reversed(python) if len(body) <= _LONGEST)
    code = next((body for body in short if defines.search(body)), python[-1] if python else text)
    if len(code) > _LONGEST:
        told = f"The code has {len(code):,} characters; at most {_LONGEST:,} are run."
        return Verdict(False, reason=told, feedback=told, kind="malformed")
    code = textwrap.dedent(code).strip("\n")
    return code if code.strip() else _no_code()


def _no_code() -> Verdict:
    return Verdict(False, reason="there is no code in the text", feedback=_NO_CODE, kind="malformed")


def _placed(result: TrialResult, code: str) -> str:
    """The error with its line."""
    lines = code.split("\n")
    if result.line is None or not 1 <= result.line <= len(lines):
        return clip(result.error, _SHOWN)
    return f"{clip(result.error, 160)} (line {result.line}: {clip(lines[result.line - 1].strip(), 80)})"
