"""Code held against tests, whatever sandbox it runs in: what is given, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Trial", "TrialResult"]


@dataclass(frozen=True, slots=True)
class Trial:
    """Tests, as a sandbox takes them.

    Attributes:
        tests: Python sources, run in turn, and of each whether it counts as a test.
        count: tests that must have passed, those in functions and classes included.
        functions: test functions that the tests define.
        before: source that stands before the code.
        names: names that are the code's although Python has them too.
        free: names that the tests use and do not define.
        operators: whether an object of the code may be compared and reckoned with plain values.
    """

    tests: tuple[tuple[str, bool], ...]
    count: int
    functions: tuple[str, ...] = ()
    before: str = ""
    names: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    operators: bool = False


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of it. All texts are untrusted.

    Attributes:
        passed: tests that passed.
        total: tests that there are, as far as it came.
        failed: the first test that failed, or "" where all passed or the code could not be loaded.
        got: the last call of that test with what it gave.
        error: what was raised, or how it ended; "" where an assert was simply not met.
        line: line of the code in which that was raised, 1 for the first, or None.
        unreadable: whether the code does not compile.
        loaded: whether the code could be loaded.
        unsupported: whether it failed for want of something that the sandbox does not have, and Python has.
        seconds: wall-clock seconds.
    """

    passed: int
    total: int
    failed: str = ""
    got: str = ""
    error: str = ""
    line: int | None = None
    unreadable: bool = False
    loaded: bool = True
    unsupported: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every test passed."""
        return self.loaded and not self.failed and not self.error and self.passed == self.total > 0
