"""Pays for every model and tool that LangChain calls within a run's budget: reserved at its start, settled at its end.

LangChain tells its callbacks of each call, wherever it is made: in a tool, in a subagent, in a middleware's own node.
A callback that raises at the start stops the call. Each scope has two of them, because LangChain awaits a callback only
where the call is async, and an error of an async one is lost where it is not: ``AsyncRunBudget`` stands first and works
only where it is awaited; ``RunBudget`` after it does what was not done, and raises for both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook

from rfx_agent.budgets import ambient
from rfx_agent.budgets.ambient import Hold, Scope, Short
from rfx_agent.budgets.charge import Charge
from rfx_agent.records import Spend, Usage
from rfx_agent.samplers.chat.parameters import cap_in
from rfx_agent.samplers.chat.read import PICTURE, Prompt, cached, parts_of, usage_of_result
from rfx_agent.samplers.openai.provider_errors import tries
from rfx_agent.samplers.openai.transport import Tries, given_up
from rfx_agent.samplers.usage import count

__all__ = ["WRITTEN", "cut_off", "payers", "scope_in_config", "watching"]

WRITTEN = 1_024
"""Tokens that a call is taken to write where its model names no cap."""
_TEMPLATE = 64  # tokens that a chat template may add to each message
_TOOLS = ("tools", "functions", "response_format")
_MOST_KNOWN = 32
Sizes: TypeAlias = tuple[int, ...]


@dataclass(slots=True)
class _Call:
    """A call of a model that is to be paid: who is asked what, and the most that it can cost."""

    prompt: Prompt
    model: str
    provider: str
    cap: int | None
    choices: int
    sizes: Sizes
    place: tuple[Any, ...]
    besides: str
    bound: Usage = field(default_factory=Usage)
    tries: Tries = field(default_factory=Tries)
    lost: int = 0  # earlier tries that were lost, and charged
    repaid: int = 0  # of these, the ones after which a further try was reserved

    def charge(self, usage: Usage) -> Charge:
        first = not self.lost
        spend = Spend(samples=self.choices * first, tokens=usage.tokens, calls=int(first))
        return Charge(spend=spend, usage=usage, model=self.model, provider=self.provider)


_open: dict[UUID, tuple[Hold, _Call | None]] = {}  # the calls under way in this process
_refused: dict[UUID, Short] = {}  # those that are about to be stopped
_watched: ContextVar[list[UUID] | None] = ContextVar("rfx_watched", default=None)


@contextlib.contextmanager
def watching(begun: list[UUID]) -> Iterator[list[UUID]]:
    """Note in ``begun`` what begins inside. LangChain does not tell its callbacks of each that is cancelled."""
    before = _watched.get()
    _watched.set(begun)
    try:
        yield begun
    finally:
        _watched.set(before)


def cut_off(begun: Iterable[UUID]) -> list[Hold]:
    """What is set aside for those of ``begun`` that have not ended; nobody will say that they have."""
    return [found[0] for run_id in begun if (found := _open.pop(run_id, None)) is not None]


class Payer(BaseCallbackHandler):
    """What the two callbacks of a scope have in common."""

    raise_error = run_inline = True
    ignore_chain = ignore_retriever = ignore_retry = ignore_custom_event = True

    def __init__(self, scope: Scope, written: int, known: dict[Any, tuple[Sizes, int]]) -> None:
        self.scope = scope
        self._written, self._known = written, known

    def _mine(self, run_id: UUID) -> bool:
        """Whether this one pays: nobody did, and no scope further inside does."""
        if run_id in _open or run_id in _refused:
            return False
        here = ambient.current()
        return here is None or here is self.scope or self.scope not in here.chain

    def _model(self, prompt: Prompt, told: Mapping[str, Any]) -> _Call:
        parameters, about = told.get("invocation_params") or {}, told.get("metadata") or {}
        name = next((x for key in ("model", "model_name", "model_id") if isinstance(x := parameters.get(key), str)), "")
        name = str(about.get("ls_model_name") or name or parameters.get("_type") or "model")
        provider = str(about.get("ls_provider") or "")
        cap = cap_in(parameters) or count(about.get("ls_max_tokens")) or None
        choices = count(parameters.get("n")) or 1
        sizes = _sizes(prompt)
        besides = "".join(json.dumps(x, default=str) for key in _TOOLS if (x := parameters.get(key)))
        place = (name, len(besides), *sizes[:1])
        call = _Call(prompt, name, provider, cap, choices, sizes, place, besides)
        call.bound = Usage(self._read(call), (cap or self._written) * choices, 1)
        return call

    def _read(self, call: _Call) -> int:
        """At most so many tokens are read: at most one for each byte, and what is known of the beginning of the prompt
        from the last time."""
        sizes = call.sizes
        most = len(call.besides) + sum(sizes) + _TEMPLATE * len(sizes)
        before, counted = self._known.get(call.place, ((), 0))
        same = next(
            (i for i, (a, b) in enumerate(zip(before, sizes, strict=False)) if a != b), min(len(before), len(sizes))
        )
        if not same:
            return most
        return min(most, counted + sum(sizes[same:]) + _TEMPLATE * (len(sizes) - same))

    def _began(self, run_id: UUID, said: Hold | Short, call: _Call | None) -> None:
        if isinstance(said, Short):
            self.scope.refused(said)
            _refused[run_id] = said
            return
        _open[run_id] = said, call
        if (begun := _watched.get()) is not None:
            begun.append(run_id)
        if call is not None:
            self.scope.granted()

    def _ended(self, call: _Call, response: LLMResult) -> Charge:
        if cached(response):
            return Charge(spend=Spend(), model=call.model, provider=call.provider)
        usage = usage_of_result(response, (call.prompt,), cap=call.cap, besides=call.besides)
        if _counted(response):
            self._known[call.place] = call.sizes, usage.prompt_tokens
            while len(self._known) > _MOST_KNOWN:
                self._known.pop(next(iter(self._known)), None)
        return call.charge(usage)

    def _failed(self, call: _Call, error: BaseException, response: LLMResult | None) -> Charge | None:
        """What a call cost that did not end well: what it wrote, as far as that was seen; nothing where the server
        refused it; else all that was set aside, because the cost is unknown."""
        if response is not None and len(response.generations) > 1:  # LangChain adds one of its own
            wrote = LLMResult(generations=response.generations[:1])
            return call.charge(usage_of_result(wrote, (call.prompt,), besides=call.besides))
        made, lost = tries(error)
        if lost is None:
            return None
        if call.tries.tried:  # the earlier ones are charged
            made, lost = 1, max(0, call.tries.spoiled - call.lost)
        bound = call.bound
        return call.charge(Usage(bound.prompt_tokens * lost, bound.completion_tokens * lost, max(made, 1)))


def _taken(run_id: UUID) -> tuple[Hold, _Call | None] | None:
    found = _open.pop(run_id, None)
    if found is not None and found[1] is not None:
        found[1].tries.end()
    return found


def _count_tries(run_id: UUID) -> None:
    """Reserve each further try of a call, where its client tells of them; a lost one before it is charged in full."""
    found = _open.get(run_id)
    if found is None or (call := found[1]) is None or call.tries.begun:
        return
    scope = found[0].scopes[0][0]

    def further() -> None:
        if hold := _lost(run_id, call):
            hold.settle()
            _tried_again(run_id, call, scope, scope.reserve(call.charge(call.bound)))

    async def afurther() -> None:
        if hold := _lost(run_id, call):
            await hold.asettle()
            _tried_again(run_id, call, scope, await scope.areserve(call.charge(call.bound)))

    call.tries.begin(run_id, further, afurther)


def _lost(run_id: UUID, call: _Call) -> Hold | None:
    """What is set aside for the last try, if that was lost. Raise where nobody waits for a further one."""
    if run_id not in _open:
        raise given_up()
    if call.tries.lost <= call.repaid:
        return None
    call.lost = call.tries.lost
    return _open[run_id][0]


def _tried_again(run_id: UUID, call: _Call, scope: Scope, said: Hold | Short) -> None:
    if isinstance(said, Short):
        scope.refused(said)
        raise said.error()
    call.repaid = call.lost
    _open[run_id] = said, call


def _stop(run_id: UUID) -> None:
    if (short := _refused.pop(run_id, None)) is not None:
        raise short.error()


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """LangChain warns of each callback that raises. A refused call is not a fault; the end of the run reports it."""
    told = record.args if isinstance(record.args, tuple) else ()
    return not (len(told) == 3 and told[0] == "RunBudget" and str(told[2]).startswith("BudgetExhausted("))


logging.getLogger("langchain_core.callbacks.manager").addFilter(_is_no_refusal)

_TOOL = Charge(spend=Spend(calls=1), tool=True)


class RunBudget(Payer):
    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **told: Any
    ) -> None:
        if self._mine(run_id):
            call = self._model(messages[0] if messages else [], told)
            self._began(run_id, self.scope.reserve(call.charge(call.bound)), call)
        _stop(run_id)
        _count_tries(run_id)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **told: Any) -> None:
        self.on_chat_model_start(serialized, cast("Any", prompts), run_id=run_id, **told)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        if found := _taken(run_id):
            hold, call = found
            hold.settle(self._ended(cast("_Call", call), response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, response: LLMResult | None = None, **_: Any) -> None:
        if found := _taken(run_id):
            hold, call = found
            hold.settle(self._failed(cast("_Call", call), error, response))

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **_: Any) -> None:
        if self._mine(run_id):
            self._began(run_id, self.scope.reserve(_TOOL), None)
        _stop(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        if found := _taken(run_id):
            found[0].settle(_TOOL)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        if found := _taken(run_id):
            found[0].settle(_TOOL)


class AsyncRunBudget(Payer):
    def __init__(self, scope: Scope, written: int, known: dict[Any, tuple[Sizes, int]]) -> None:
        super().__init__(scope, written, known)
        for name in ("chat_model_start", "llm_start", "llm_end", "llm_error", "tool_start", "tool_end", "tool_error"):
            setattr(self, f"on_{name}", _Awaited(getattr(self, f"_{name}")))

    async def _chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **told: Any) -> None:
        if self._mine(run_id):
            call = self._model(messages[0] if messages else [], told)
            self._began(run_id, await self.scope.areserve(call.charge(call.bound)), call)

    async def _llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **told: Any) -> None:
        await self._chat_model_start(serialized, prompts, run_id=run_id, **told)

    async def _llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        if found := _taken(run_id):
            hold, call = found
            await hold.asettle(self._ended(cast("_Call", call), response))

    async def _llm_error(
        self, error: BaseException, *, run_id: UUID, response: LLMResult | None = None, **_: Any
    ) -> None:
        if found := _taken(run_id):
            hold, call = found
            await hold.asettle(self._failed(cast("_Call", call), error, response))

    async def _tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **_: Any) -> None:
        if self._mine(run_id):
            self._began(run_id, await self.scope.areserve(_TOOL), None)

    async def _tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        if found := _taken(run_id):
            await found[0].asettle(_TOOL)

    async def _tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        await self._tool_end(None, run_id=run_id)


async def _code() -> None:
    return None


class _Awaited:
    """A callback that does its work when it is awaited, and nothing where it is only called.

    To ``inspect`` it looks like a coroutine function, so LangChain awaits what it returns where it can await. That is
    no coroutine, so where it cannot, LangChain takes it for a result and drops it.
    """

    __name__, __code__, __defaults__, __kwdefaults__ = "callback", _code.__code__, None, None

    def __init__(self, work: Callable[..., Awaitable[None]]) -> None:
        self._work = work
        self.__annotations__: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> _Later:
        return _Later(self._work, args, kwargs)


class _Later:
    __slots__ = ("_args", "_kwargs", "_work")

    def __init__(self, work: Callable[..., Awaitable[None]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._work, self._args, self._kwargs = work, args, kwargs

    def __await__(self) -> Generator[Any, Any, None]:
        return self._work(*self._args, **self._kwargs).__await__()


def _sizes(prompt: Prompt) -> Sizes:
    if isinstance(prompt, str):
        return (len(prompt.encode(errors="replace")),)
    sizes = []
    for message in prompt:
        text, pictures, _ = parts_of((message,))
        sizes.append(len(text.encode(errors="replace")) + PICTURE * pictures)
    return tuple(sizes)


def _counted(response: LLMResult) -> bool:
    """Whether somebody counted what was read."""
    first = next((x for choices in response.generations for x in choices), None)
    usage = getattr(getattr(first, "message", None), "usage_metadata", None)
    return isinstance(usage, Mapping) and bool(count(usage.get("input_tokens")))


_tying = threading.Lock()


def payers(scope: Scope, written: int = WRITTEN) -> tuple[Payer, Payer]:
    """The two callbacks that pay in ``scope``, always the same, in the order in which they must stand.

    Args:
        scope: the run's budget.
        written: tokens that a call is taken to write where its model names no cap.
    """
    with _tying:
        if scope.tied is None:
            known: dict[Any, tuple[Sizes, int]] = {}
            scope.tied = AsyncRunBudget(scope, written, known), RunBudget(scope, written, known)
        return cast("tuple[Payer, Payer]", scope.tied)


def scope_in_config() -> Scope | None:
    """The innermost scope whose callbacks are in the config that is active here."""
    config = var_child_runnable_config.get()
    callbacks = config.get("callbacks") if config else None
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or ()
    found = [x.scope for x in handlers if isinstance(x, Payer)]
    return max(found, key=lambda x: len(x.chain), default=None)


class _Here:
    """Stands for a context variable: LangChain adds what it gives to the callbacks of every run."""

    def __init__(self, which: int) -> None:
        self._which = which

    def get(self) -> Payer | None:
        scope = ambient.current()
        return None if scope is None else payers(scope)[self._which]


ambient.FINDERS.append(scope_in_config)
for _which in (0, 1):
    register_configure_hook(cast("ContextVar[Any]", _Here(_which)), inheritable=True)
