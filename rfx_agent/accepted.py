"""What a user may give in the place of a port: a function, a chat model, a LangChain tool, or a stranger's object.

What cannot be one is refused with the class to use. Whatever brings a library is loaded when it is given, by name, so
that the parts below may ask here; an object of a library that nobody has loaded cannot have been given.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol, TypeAlias, TypeVar, is_typeddict

from pydantic import BaseModel

from rfx_agent.checks import instance, shown
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Sampler, Tool, Verifier
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step, Verdict

__all__ = [
    "CandidateLike",
    "SamplerLike",
    "ToolLike",
    "VerifierLike",
    "adopted",
    "candidate_of",
    "sampler_of",
    "tool_of",
    "verifier_of",
]

P = TypeVar("P")


class _Invoked(Protocol):
    """A LangChain object, whose library these rooms do not know."""

    def invoke(self, input: Any, /, *args: Any, **kwargs: Any) -> Any: ...  # noqa: A002  # LangChain's name


class _Samples(Protocol):
    def sample(self, request: SampleRequest, /) -> SampleResult: ...


class _Verifies(Protocol):
    def verify(self, step: Step, rollout: Rollout, /, *, peers: Sequence[Rollout]) -> Verdict: ...


class _Said(Protocol):
    content: Any
    response_metadata: Any


SamplerLike: TypeAlias = Sampler | str | _Invoked | _Samples
"""A ``Sampler``, a LangChain chat model or what wraps one, or the name of one: what ``sampler_of`` takes."""
VerifierLike: TypeAlias = Verifier | Callable[..., Any] | _Verifies
"""A ``Verifier`` or a function: what ``verifier_of`` takes."""
ToolLike: TypeAlias = Tool | Callable[..., Any] | _Invoked
"""A ``Tool``, a LangChain tool or a function: what ``tool_of`` takes."""
CandidateLike: TypeAlias = Rollout | str | _Said
"""A ``Rollout``, its text, or an ``AIMessage``: what ``candidate_of`` takes."""


def sampler_of(value: Any, *, where: str) -> Sampler:
    """A sampler: one, a LangChain chat model or what wraps one, or the name of one as ``init_chat_model`` takes it.

    Args:
        value: what a user gave.
        where: whose parameter it is, for the message.

    Raises:
        ConfigError: it is none of these; a name of which no model can be made.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> sampler_of(FakeListChatModel(responses=["7"]), where="recovery: sampler")
        ChatModelSampler('FakeListChatModel')
    """
    if _is(Sampler, value):
        return adopted(Sampler, value, where=where)  # type: ignore[type-abstract]
    if _is_runnable(value) or (isinstance(value, str) and value.strip()):
        model: Sampler = _made("samplers.chat", "ChatModelSampler", where, value)
        return model
    raise ConfigError(
        f"{where} is {shown(value)}; give {_an_instance_of(value, Sampler)}a sampler such as OpenAISampler(name), a "
        "LangChain chat model (ChatModelSampler), its name, or an object with the members of rfx_agent.ports.Sampler: "
        "name, sample"
    )


def verifier_of(value: Any, *, where: str) -> Verifier:
    """A verifier: one, or a function of the text, or of the step and the rollout, whose pass is then a proof.

    Raises:
        ConfigError: it is neither; names the verifier to make of it.

    Example:
        >>> verifier_of(str.isdigit, where="recovery: verifier")
        FunctionVerifier(name='isdigit')
    """
    if _is(Verifier, value):
        return adopted(Verifier, value, where=where)  # type: ignore[type-abstract]
    if give := _verifier_for(value):
        raise ConfigError(f"{where} is {_named(value)}; give {give}")
    if callable(value) and not isinstance(value, type):
        verifier: Verifier = _made("verifiers.function", "FunctionVerifier", where, value)
        return verifier
    raise ConfigError(
        f"{where} is {shown(value)}; give {_an_instance_of(value, Verifier)}an instance of a class of "
        "rfx_agent.verifiers or with the members of rfx_agent.ports.Verifier (name, verify), or a function of the text"
    )


def tool_of(value: Any, *, where: str) -> Tool:
    """A tool: one, a LangChain tool, or a function with a docstring, of which LangChain makes one.

    Raises:
        ConfigError: it is none of these, or LangChain can make no tool of it.

    Example:
        >>> def multiply(a: int, b: int) -> int:
        ...     "Multiply two numbers."
        ...     return a * b
        >>> tool_of(multiply, where="recovery: tool").run('{"a": 6, "b": 7}').answer
        '42'
    """
    if _is(Tool, value):
        return adopted(Tool, value, where=where)  # type: ignore[type-abstract]
    langchain = isinstance(value, _loaded("langchain_core.tools", "BaseTool"))
    if not langchain and callable(value) and not isinstance(value, type) and not _is_runnable(value):
        try:
            value, langchain = import_module("langchain_core.tools").tool(value), True
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where} is {shown(value)}, of which LangChain makes no tool: {error}; give it a docstring, or give "
                "LangChainTool(a tool) of rfx_agent.tools"
            ) from error
    if langchain:
        tool: Tool = _made("tools.langchain", "LangChainTool", where, value)
        return tool
    raise ConfigError(
        f"{where} is {shown(value)}; give {_an_instance_of(value, Tool)}ProgramTool(), a LangChain tool, a function "
        "with a docstring, or an object with the members of rfx_agent.ports.Tool: "
        f"{', '.join(sorted(_required(Tool)))}"
    )


def candidate_of(value: Any, *, where: str = "recovery: candidate") -> Rollout:
    """An answer that somebody already has: a rollout, its text, or what a LangChain chat model answered.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> candidate_of("42").text
        '42'
    """
    if isinstance(value, str):
        return Rollout(text=value)
    if isinstance(value, _loaded("langchain_core.messages", "AIMessage")):
        made: Rollout = import_module("rfx_agent.samplers.chat").rollout_of(value)
        return made
    return instance(where, value, Rollout, "the answer's text, a Rollout, or an AIMessage")  # type: ignore[no-any-return]


def adopted(port: type[P], value: object, *, where: str) -> P:
    """``value`` as a ``port``: itself where it derives from it, else its members with the port's defaults.

    Args:
        port: a class of this module.
        value: what a user gave.
        where: whose parameter it is, for the message.

    Raises:
        ConfigError: ``value`` lacks a required member.

    Example:
        >>> class Echo:
        ...     name = "echo"
        ...     def sample(self, request): ...
        >>> adopted(Sampler, Echo(), where="recovery: sampler").max_calls
        1
    """
    if isinstance(value, port):
        return value
    required = _required(port)
    if isinstance(value, type) or not all(hasattr(value, name) for name in required):
        raise ConfigError(
            f"{where} is {shown(value)}; give an instance of a class that derives from "
            f"rfx_agent.ports.{port.__name__}, or that has {', '.join(sorted(required))}"
        )
    return _foreign(port)(value)  # type: ignore[arg-type, no-any-return]  # classes are hashable; it derives from the port


def _required(port: type) -> set[str]:
    """Members without a default: abstract methods, and attributes that are only annotated."""
    return {*port.__abstractmethods__, *(n for n in port.__annotations__ if n not in vars(port))}  # type: ignore[attr-defined]


@cache
def _foreign(port: Any) -> Any:
    """A class of ``port`` whose instances pass everything on to an object that does not derive from it."""

    def init(self: Any, value: Any) -> None:
        self.__wrapped__ = value

    def passed_on(self: Any, name: str) -> Any:
        if name.startswith("__"):  # a protocol's; and ``__wrapped__`` itself, while this is copied
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    names = [n for n in (*vars(port), *port.__annotations__) if not n.startswith("_")]
    members: dict[str, Any] = {n: _Through(n, vars(port).get(n, _NONE)) for n in names}
    members["__init__"] = init
    members["__getattr__"] = passed_on
    members["__repr__"] = lambda self: f"{port.__name__} of {self.__wrapped__!r}"
    return type(f"Foreign{port.__name__}", (port,), members)


class _Through:
    """A member that is read where the wrapped object has it, each time, and else is the port's default."""

    def __init__(self, name: str, default: Any) -> None:
        self._name, self._default = name, default

    def __get__(self, wrapper: Any, owner: type) -> Any:
        if wrapper is None:
            return self
        value = getattr(wrapper.__wrapped__, self._name, self._default)
        if value is not self._default:
            return value
        if value is _NONE or getattr(value, "__isabstractmethod__", False):
            raise AttributeError(f"{type(wrapper.__wrapped__).__name__} has no {self._name} any more")
        return value.__get__(wrapper, owner) if hasattr(value, "__get__") else value


_NONE: Any = object()


def _is(port: type, value: Any) -> bool:
    """Whether ``value`` derives from ``port`` or has what it requires."""
    return isinstance(value, port) or (
        not isinstance(value, type) and all(hasattr(value, name) for name in _required(port))
    )


def _made(module: str, name: str, where: str, value: Any) -> Any:
    """The class ``name`` of ``module``, made of ``value``; what it refuses is refused in the parameter's name."""
    try:
        return getattr(import_module(f"rfx_agent.{module}"), name)(value)
    except ConfigError as error:
        raise ConfigError(f"{where} is {shown(value)}: {error}") from error


def _loaded(module: str, name: str) -> Any:
    """The class ``name`` of ``module``, for ``isinstance``: an empty tuple where nobody has loaded the module."""
    return getattr(sys.modules.get(module), name, ())


def _is_runnable(value: Any) -> bool:
    return isinstance(value, _loaded("langchain_core.runnables", "Runnable"))


def _an_instance_of(value: Any, port: type) -> str:
    return f"an instance, {value.__name__}(...), " if isinstance(value, type) and issubclass(value, port) else ""


def _named(value: Any) -> str:
    """``value`` for a message that must not say what an answer is compared with."""
    return f"a {type(value).__name__}" if isinstance(value, (str, int, float, list, tuple, set)) else shown(value)


def _verifier_for(value: Any) -> str:
    """What to write for ``value``, which is no verifier and looks like what one is made of; "" for anything else."""
    if isinstance(value, type):
        shape = issubclass(value, BaseModel) or is_dataclass(value) or is_typeddict(value)
        return f"PydanticVerifier({value.__name__})" if shape else ""
    if isinstance(value, _loaded("langchain_core.language_models", "BaseChatModel")) or _is(Sampler, value):
        return "JudgeVerifier(the model, rubric=...), whose pass is an opinion"
    return next((give for kind, give in _VERIFIERS if isinstance(value, kind)), "") or (
        "FunctionVerifier(lambda text: ...) around it" if _is_runnable(value) else ""
    )


_VERIFIERS: tuple[tuple[Any, str], ...] = (
    (re.Pattern, "RegexVerifier(pattern)"),
    (BaseModel, "PydanticVerifier(the model's class), or ExactVerifier(expected)"),
    (Mapping, "JsonSchemaVerifier(schema)"),
    ((str, int, float), "ExactVerifier(expected), RegexVerifier(pattern), or a function of the text"),
    (
        (list, tuple, set, frozenset),
        "one verifier: AllOf(first, second) where all must pass, AnyOf where one must, ExactVerifier([...]) for "
        "several right answers; second_opinion= asks another about an uncertain pass",
    ),
)
