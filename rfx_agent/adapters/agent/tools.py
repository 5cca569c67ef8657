"""Tool calls whose results are checked, and made again under the run's budget when the check says no."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.runtime import get_runtime
from langgraph.types import Command

from rfx_agent.adapters.agent.state import AgentRun, Purses
from rfx_agent.adapters.graph.source import streaming
from rfx_agent.adapters.texts import as_text
from rfx_agent.budgets.step import Ledger, Purse, RetryBudget
from rfx_agent.engine.drive import Call, Flow, Reply, drive, drive_async
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.engine.settings import Settings
from rfx_agent.errors import ConfigError, VerifierError
from rfx_agent.events import ToolRan
from rfx_agent.records import Rollout, Spend

__all__ = ["ToolCheck", "ToolHooks", "checked_checks"]

ToolCheck: TypeAlias = Callable[[ToolCallRequest, ToolMessage], bool | str]
"""True where a tool's result will do; False, or a text that says why, where it will not."""

_CALL = Spend(attempts=1, seconds=0.001, tool_seconds=0.001)  # what it takes is known afterwards


class ToolHooks:
    """The tool hooks of the middleware; a class without them leaves the agent's tools alone."""

    _settings: Settings
    _purses: Purses
    _per: str
    _recovers: Mapping[str, ToolCheck]
    _tool_retries: int

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Make the call, and make it again while its result fails the check and the budget pays for it."""
        return drive(self._tool_flow(request, handler))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Do what ``wrap_tool_call`` does, without blocking the event loop."""
        return await drive_async(self._tool_flow(request, handler))

    def _tool_flow(self, request: ToolCallRequest, handler: Callable[..., Any]) -> Flow[ToolMessage | Command[Any]]:
        name = request.tool_call["name"]
        check, call = self._recovers.get(name), Call(handler, handler, (request,))
        if check is None:
            self._look_for_typing_errors(request)
        (reply,) = yield (call,)
        if reply.error is not None:
            raise reply.error
        result: ToolMessage | Command[Any] = reply.value
        if check is None:
            return result
        run, purse, step_id, again = self._run(), self._purse(request), _step(request), 0
        # A command, or several messages, change the state; a tool that does so is not run twice.
        while isinstance(result, ToolMessage):
            why = _why(check, request, result)
            operation = f"{step_id}/{again}"
            run.emit(ToolRan(step_id, name, why is not None, reply.seconds, operation=operation, attempt=again + 1))
            if why is None:
                return result
            if again == self._tool_retries:
                return _failed(request, result, why, again + 1, "no further call is allowed")
            again += 1
            item = Purchase(purpose="tool", cost=_CALL, calls=(call,), price=_price, remedy="tool", attempt=again + 1)
            paid = yield from run.buy(purse, item, step_id=step_id, operation=f"{step_id}/{again}")
            if paid.refused:
                return _failed(request, result, why, again, f"the budget has too few {paid.refused[0]} left")
            (reply,) = paid.replies
            if reply.error is not None:
                raise reply.error
            result = reply.value
        return result

    def _look_for_typing_errors(self, request: ToolCallRequest) -> None:
        """Refuse a name that is none of the agent's tools and nearly the one of this call, which nobody would check."""
        tools = {tool.name for tool in getattr(request.runtime, "tools", None) or ()}
        name, unknown = request.tool_call["name"], [x for x in self._recovers if x not in tools]
        if name in tools and (meant := difflib.get_close_matches(name, unknown, n=1, cutoff=0.8)):
            raise ConfigError(
                f"RecoverabilityMiddleware: recovers has {meant[0]!r}, and the agent has no such tool; do you mean "
                f"{name!r}?"
            )

    def _run(self) -> Run:
        return Run.of(self._settings, on_event=streaming(self._settings))

    def _purse(self, request: ToolCallRequest) -> Purse:
        """The run's purse, or, where each call has a budget of its own, one that pays into it."""
        try:
            runtime: Any = get_runtime()
        except (RuntimeError, KeyError):
            runtime = None  # called outside a graph
        run = AgentRun.of(request.state, runtime, self._purses)
        return run.purse if self._per == "run" else _Own(self._settings.budget, run.purse)


class _Own(Purse):
    def __init__(self, budget: RetryBudget, whole: Purse) -> None:
        super().__init__(Ledger(budget))
        self._whole = whole

    def settle(self, reserved: Spend, actual: Spend, model: str = "") -> None:
        super().settle(reserved, actual, model)
        self._whole.settle(Spend(), actual, model)


def _price(replies: tuple[Reply, ...]) -> Spend:
    return Spend(attempts=1, seconds=replies[0].seconds, tool_seconds=replies[0].seconds)


def checked_checks(recovers: Any) -> dict[str, ToolCheck]:
    """``recovers``, refused where it is no mapping of names to callables."""
    if recovers is None:
        return {}
    if not isinstance(recovers, Mapping):
        raise ConfigError(
            f"RecoverabilityMiddleware: recovers is {recovers!r}; give a mapping from a tool's name to a function of "
            "(request, message) that returns True, False or the reason why not"
        )
    for name, check in recovers.items():
        if not isinstance(name, str) or not callable(check):
            raise ConfigError(
                f"RecoverabilityMiddleware: recovers[{name!r}] is {check!r}; give a function of (request, message)"
            )
    return dict(recovers)


def _why(check: ToolCheck, request: ToolCallRequest, message: ToolMessage) -> str | None:
    """None where the result will do."""
    name, rollout = request.tool_call["name"], Rollout(text=as_text(message), remedy="tool")
    try:
        said = check(request, message)
    except Exception as error:
        raise VerifierError(
            f"the check of tool {name} broke: {type(error).__name__}: {error}", rollout=rollout
        ) from error
    if said is True:
        return None
    if said is False:
        return "it did not pass its check"
    if isinstance(said, str) and said:
        return said
    raise VerifierError(
        f"the check of tool {name} returned {said!r}; return True, False, or a text that says why not", rollout=rollout
    )


def _failed(request: ToolCallRequest, last: ToolMessage, why: str, calls: int, stop: str) -> ToolMessage:
    text = f"The result of {request.tool_call['name']} cannot be used: {why}. It was called {calls}x; {stop}."
    return ToolMessage(text, tool_call_id=last.tool_call_id, name=last.name, id=last.id, status="error")


def _step(request: ToolCallRequest) -> str:
    return request.tool_call.get("id") or request.tool_call["name"]
