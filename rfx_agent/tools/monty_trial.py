"""Code held against tests in Monty: two sessions that share nothing, and this process between them.

The tests call the code's functions; their arguments and results go through here as JSON, and the tests compare values
in their own session. So the code can neither see what a test expects nor redefine what the tests use.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rfx_agent.tools.box.asserts import statement_in
from rfx_agent.tools.box.wire import Broken, Codec
from rfx_agent.tools.trial import Trial, TrialResult

if TYPE_CHECKING:
    from pydantic_monty import MontyError, MontySession

__all__ = ["lacking", "monty_trial"]

_MOST = 1024 * 1024  # characters of one value

# In both sessions. What the code does to these names in its own changes what it says, and nothing else.
_CODEC = """
import json as __rfx_json
def __rfx_enc(v):
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    if isinstance(v, (list, tuple, set, frozenset)):
        tag = 'l' if isinstance(v, list) else 't' if isinstance(v, tuple) else 's' if isinstance(v, set) else 'fs'
        return [tag, [__rfx_enc(x) for x in v]]
    if isinstance(v, dict):
        return ['d', [[__rfx_enc(k), __rfx_enc(x)] for k, x in v.items()]]
    if isinstance(v, bytes):
        return ['b', v.hex()]
    raise TypeError('__rfx_plain')
def __rfx_dec(v):
    if not isinstance(v, list):
        return v
    tag, body = v[0], v[1]
    if tag == 'i':
        return int(body, 16)
    if tag == 'b':
        return bytes.fromhex(body)
    if tag == 'd':
        return {__rfx_dec(k): __rfx_dec(x) for k, x in body}
    made = [__rfx_dec(x) for x in body]
    return made if tag == 'l' else tuple(made) if tag == 't' else set(made) if tag == 's' else frozenset(made)
"""
# In the tests' session: a call, after which the arguments are what the code made of them.
_CALLS = """
def __rfx_follow(mine, new):
    if isinstance(mine, list):
        mine[:] = new
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(new)
def __rfx_call(name, a, k):
    value, args, named = __rfx_host(name, a, k)
    for i in range(len(a)):
        if isinstance(a[i], (list, dict, set)) and a[i] != args[i]:
            __rfx_follow(a[i], args[i])
    for key in k:
        if isinstance(k[key], (list, dict, set)) and k[key] != named[key]:
            __rfx_follow(k[key], named[key])
    return value
"""
_KIND = """
try:
    __rfx_v = {name}
    __rfx_k = f"{{__rfx_v!s}}"[:10]
    if __rfx_k == '<function ':
        __rfx_k = 'function'
    elif __rfx_k == '<built-in ':
        __rfx_k = 'built-in'
    elif __rfx_k[:7] == '<class ':
        __rfx_k = 'class'
    else:
        __rfx_k = 'value'
except NameError:
    __rfx_k = 'none'
f"{{__rfx_k!s}}"
"""
_CALL = """
__rfx_a, __rfx_n = __rfx_dec(__rfx_json.loads({given!r}))
__rfx_r = {name}(*__rfx_a, **__rfx_n)
f"{{__rfx_json.dumps(__rfx_enc((__rfx_r, __rfx_a, __rfx_n)))!s}}"[:{most}]
"""
_VALUE = 'f"{{__rfx_json.dumps(__rfx_enc({name}))!s}}"[:{most}]'


class _Unsupported(Exception):
    """Monty lacks it."""


def _refuse(value: Any) -> Any:
    raise _Unsupported(f"only plain values can go between tests and code, and this is a {type(value).__name__}")


class _Code:
    """The code's session, as the tests' session reaches it."""

    def __init__(self, session: MontySession, deadline: float) -> None:
        self._session, self._deadline = session, deadline
        self._codec = Codec(_refuse, _refuse)
        self.broken = self.unsupported = self.got = self.error = ""
        self.line: int | None = None

    def feed(self, source: str) -> Any:
        if time.monotonic() > self._deadline:
            self.broken = "TimeoutError: the tests did not end in time"
            raise Broken(self.broken)
        return self._session.feed_run(source, print_callback=_drop)

    def value(self, source: str) -> Any:
        try:
            text = str(self.feed(source))
            return self._codec.unpack(json.loads(text))
        except (ValueError, RecursionError, Broken) as error:
            raise Broken("the code gave a value that cannot be read") from error

    def host(self, name: str, args: Any, named: Any) -> Any:
        """Called by the tests' session."""
        from pydantic_monty import MontyCrashedError, MontyError

        self.got = self.error = ""
        shown = [f"{x!r:.200}" for x in args] + [f"{key}={x!r:.200}" for key, x in named.items()]
        call = f"{name}({', '.join(shown)})"
        try:
            given = json.dumps(self._codec.pack((tuple(args), dict(named))))
            reply = self.value(_CALL.format(given=given, name=name, most=_MOST))
        except MontyError as error:
            text, self.line = _described(error), _line(error)
            self.error = text
            if isinstance(error, MontyCrashedError) or text.startswith(("TimeoutError: feed", "MemoryError")):
                self.broken = _limit(text)
            if "__rfx_plain" in text:
                self.unsupported = f"{name} gives or keeps an object that is no plain value"
            self.unsupported = self.unsupported or lacking(text)
            raise _raised(text) from error
        except _Unsupported as error:
            self.unsupported = str(error)
            raise RuntimeError(self.unsupported) from error
        except Broken as error:
            self.broken = self.broken or str(error)
            raise RuntimeError(self.broken) from error
        self.got = f"{call} gave {reply[0]!r:.200}"
        return reply


def monty_trial(opened: Callable[[], MontySession], code: str, trial: Trial, *, seconds: float) -> TrialResult:
    """Hold ``code`` against ``trial``; ``opened`` gives a fresh session."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        sessions = []
        for _ in range(2):
            sessions.append(opened())
            stack.callback(sessions[-1].__exit__, None, None, None)
        theirs, ours = sessions
        result = _trial(theirs, ours, code, trial, began + 2 * seconds)
    return replace(result, seconds=time.monotonic() - began)


def _trial(theirs: MontySession, ours: MontySession, code: str, trial: Trial, deadline: float) -> TrialResult:
    from pydantic_monty import MontyError

    far = _Code(theirs, deadline)
    try:
        far.feed(_CODEC)
        if trial.before:
            far.feed(trial.before)
        far.feed(code)
    except MontyError as error:
        text = _described(error)
        return TrialResult(
            0,
            trial.count,
            error=_limit(text) if text.startswith("TimeoutError: feed") else text,
            line=_line(error),
            unreadable=_is_syntax(error),
            loaded=False,
            unsupported=bool(lacking(text)),
        )
    fed = 1
    ours.feed_run(_CODEC + _CALLS, print_callback=_drop)
    inputs: dict[str, Any] = {}
    for name in trial.free:
        builtin = hasattr(builtins, name) and name not in trial.names
        try:
            kind = str(far.feed(_KIND.format(name=name)))
            if kind == "built-in":  # under a name of Python's it is Python's own
                kind = "none" if hasattr(builtins, name) else "function"
            if builtin and kind == "function":
                return TrialResult(0, trial.count, error=f"the code redefines {name}, which Python has", loaded=False)
            if builtin:
                continue
            if kind == "function":
                wrapped = f"def {name}(*a, **k):\n    return __rfx_call({name!r}, a, k)"
                ours.feed_run(wrapped, print_callback=_drop)
                fed += 1
            elif kind == "value":
                inputs[name] = far.value(_VALUE.format(name=name, most=_MOST))
            elif name in trial.names:  # Python's own would be tested instead
                return TrialResult(0, trial.count, error=f"NameError: name {name!r} is not defined", loaded=False)
            elif kind == "class":
                return _unsupported(trial, f"{name} is a class, and only functions of plain values can be tested")
        except MontyError as error:
            return _unsupported(trial, _described(error))
        except Broken as error:
            return TrialResult(0, trial.count, error=str(error), loaded=False)
    return _tests(far, ours, trial, inputs, fed)


def _tests(far: _Code, ours: MontySession, trial: Trial, inputs: dict[str, Any], fed: int) -> TrialResult:
    """Run the tests; ``fed`` inputs had been fed to their session before."""
    from pydantic_monty import MontyError

    passed, ran, failed = 0, 0, None
    sources = [*trial.tests, *((f"{name}()", True) for name in trial.functions)]
    for source, counts in sources:
        ran += counts
        far.got = far.error = ""
        far.line = None
        error = statement = ""
        try:
            ours.feed_run(
                source,
                inputs={**inputs},
                external_lookup={"__rfx_host": far.host},
                print_callback=_drop,
            )
        except MontyError as failure:
            text = _described(failure)
            far.unsupported = far.unsupported or lacking(text)
            statement = _statement([x for x, _ in sources], failure, fed)
            error = far.error or ("" if text.startswith("AssertionError") else text) or " "
        if far.broken or (error and far.unsupported):
            error = far.broken or far.unsupported
        if not error:
            passed += counts
        elif failed is None:
            failed = (statement or source, far.got, error.strip(), far.line)
        if far.broken:
            break
    total = max(ran, trial.count)
    if failed is not None:
        return TrialResult(passed, total, *failed, unsupported=bool(far.unsupported))
    if passed < total:
        return _unsupported(trial, "some tests are in classes or async, and only plain functions can be run")
    return TrialResult(passed, total)


def _statement(sources: list[str], error: MontyError, fed: int) -> str:
    """The innermost statement of the tests in which ``error`` came up; "" where that cannot be said."""
    for frame in reversed(error.traceback() if hasattr(error, "traceback") else []):
        number = frame.filename.removeprefix("<python-input-").removesuffix(">")
        if number.isdigit() and 0 <= int(number) - fed < len(sources):
            return statement_in(ast.parse(sources[int(number) - fed]), frame.line)
    return ""


def _unsupported(trial: Trial, why: str) -> TrialResult:
    return TrialResult(0, trial.count, error=why, loaded=False, unsupported=True)


def _is_syntax(error: MontyError) -> bool:
    from pydantic_monty import MontySyntaxError

    return isinstance(error, MontySyntaxError)


def _described(error: MontyError) -> str:
    display = getattr(error, "display", None)
    text = str(error)
    if display is not None:
        try:
            text = display("type-msg")
        except TypeError:
            text = display()
    return str(text)[:500]


def _line(error: MontyError) -> int | None:
    frames = error.traceback() if hasattr(error, "traceback") else []
    return frames[-1].line if frames else None


def _limit(text: str) -> str:
    return "TimeoutError: it did not end in time" if "ime" in text else "MemoryError: the sandbox stopped it"


def lacking(text: str) -> str:
    """``text`` where it is the error of something that Python has and Monty does not, else ""."""
    if text.startswith("NotImplementedError: The monty"):
        return text
    for start, known in (
        ("ModuleNotFoundError: No module named '", sys.stdlib_module_names),
        ("NameError: name '", vars(builtins)),
    ):
        if text.startswith(start) and text[len(start) :].partition("'")[0].partition(".")[0] in known:
            return text
    return ""


def _raised(text: str) -> Exception:
    """The error as the tests may catch it."""
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, None)
    loops = ("StopIteration", "StopAsyncIteration")
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in loops:
        try:
            return kind(message)
        except TypeError:
            pass
    return RuntimeError(text)


def _drop(_stream: str, _text: str) -> None:
    """What is printed is nobody's."""
