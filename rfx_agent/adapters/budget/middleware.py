"""A budget for a whole run of LangChain's ``create_agent``: every model and tool call, on one ledger."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, Literal
from uuid import UUID

from rfx_agent.errors import BudgetExhausted, ConfigError

try:
    from langchain.agents.middleware.types import AgentMiddleware, ModelRequest, ModelResponse, ToolCallRequest
except ImportError as error:
    raise ConfigError("langchain is not installed; install it with: pip install 'rfx-agent[langchain]'") from error

from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.types import Command

from rfx_agent.adapters.agent.answers import Answer, with_update
from rfx_agent.adapters.agent.thing import connected_request
from rfx_agent.adapters.budget.outcome import best_of, countdown, ending
from rfx_agent.adapters.budget.payer import WRITTEN, cut_off, watching
from rfx_agent.adapters.budget.person import AskHooks
from rfx_agent.adapters.budget.runs import BudgetState, begun, record_of, scope_of
from rfx_agent.adapters.budget.wrap import PriceLike, Terms, terms_of
from rfx_agent.budgets.ambient import Scope, Short, joined
from rfx_agent.budgets.shared import SharedBudget
from rfx_agent.budgets.step import RetryBudget
from rfx_agent.checks import among
from rfx_agent.engine.drive import Call, Flow, drive, drive_async

__all__ = ["BudgetMiddleware"]

_ME = "BudgetMiddleware"


class BudgetMiddleware(AgentMiddleware[BudgetState, Any, Any]):
    """Holds a whole run of an agent to one budget: each call of a model or a tool is reserved before it is made.

    A run is a message of the user and everything until the answer to it. Models that tools and subagents call are in
    it, streams too, and so is what ``RecoverabilityMiddleware`` buys, in either order. A subagent with a
    ``BudgetMiddleware`` of its own has its own caps within these.

    What the caps of ``RetryBudget`` mean here: a call of a model is 1 of ``samples`` and 1 of ``calls``; a call of a
    tool is 1 of ``calls``; ``tokens`` and ``usd`` are of all models; ``seconds`` and ``tool_seconds`` are those in
    which at least one call, or one tool, is at work. ``attempts`` are those of recoveries. Each question whether to
    raise the budget is one of ``escalations``.

    A model call reserves at most a token for each byte of the prompt, less where an earlier count is known, and what
    the model's own cap on its completion (such as ``max_tokens``) lets it write. Give the model such a cap: without
    one the call may write more than was reserved, and it is charged, but it crosses the budget.

    At the cap the agent ends with a message that has the best answer so far; ``budget_of(result)`` says how it ended,
    what was spent and, where it was a shared limit, how long until there is room. A tool that is not paid for is
    answered by a ``ToolMessage`` that says so, and the run ends before the next call of the model.

    Put it first in the list of middleware. A ``ModelRetryMiddleware`` inside repeats the refused call; leave
    ``BudgetExhausted`` out of its ``retry_on``.

    Args:
        budget: caps on one run: ``RetryBudget.only(usd=0.5, calls=40)``, or the mapping ``{"usd": 0.5, "calls": 40}``,
            in which caps that are not named do not hold. A ``RetryBudget(...)`` has the defaults of one step besides.
        shared: limits that many runs share, in ``attempts``, ``tokens``, ``usd`` or ``escalations``. A ``Ratio`` does
            not hold here, because it limits recoveries; an ``InFlight`` counts model calls under way.
        at_cap: whether the run ends with a message, or raises ``BudgetExhausted``.
        interrupts: whether a person is asked first to raise the caps of the run. The question is a node after the
            model; it needs a checkpointer.
        countdown: whether each request to the model says what is left of the nearest cap. It is in no state.
        prices: what models cost: a ``Price``, or one by model as ``price_of`` takes it. Where money is capped, models
            that are not in it have the price of ``price_of``.
        max_tokens: what a call is taken to write at most where its model names no cap.

    Raises:
        ConfigError: a parameter that cannot work; or, at a call, money is capped and the price is not known.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> agent = create_agent(FakeListChatModel(responses=["42"]), middleware=[BudgetMiddleware({"samples": 1})])
        >>> agent.invoke({"messages": [("user", "What is 6 times 7?")]})["messages"][-1].text
        '42'
    """

    state_schema = BudgetState
    _terms: Terms
    _at_cap: str

    def __new__(cls, *_: Any, interrupts: bool = False, **__: Any) -> BudgetMiddleware:
        """Choose the class by what is asked for: LangChain adds a node for each hook that a class defines."""
        asked: Any = cls
        made: BudgetMiddleware = super().__new__(_asking(asked) if interrupts else asked)
        return made

    def __init__(
        self,
        budget: RetryBudget | Mapping[str, float | None] | None = None,
        *,
        shared: SharedBudget | None = None,
        at_cap: Literal["stop", "raise"] = "stop",
        interrupts: bool = False,
        countdown: bool = False,
        prices: PriceLike = None,
        max_tokens: int = WRITTEN,
    ) -> None:
        super().__init__()
        self.tools = []
        self._terms = terms_of(_ME, budget, shared, prices, max_tokens)
        self._at_cap = among(f"{_ME}: at_cap", at_cap, ("stop", "raise"))
        self._interrupts = among(f"{_ME}: interrupts", interrupts, (True, False))
        self._countdown = among(f"{_ME}: countdown", countdown, (True, False))

    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined]  # what help and an IDE show

    @property
    def name(self) -> str:
        """What it is called in the agent's graph and in traces."""
        return _ME

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Begin a run."""
        record = begun(state)
        scope_of(self._terms, {**state, "rfx_budget": record})  # from here on other middleware's own calls are found
        return {"rfx_budget": record}

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Do what ``before_agent`` does, without blocking the event loop."""
        return self.before_agent(state, runtime)

    def after_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Note what was spent after the last call of the model: by a tool, or by the verdict on an answer."""
        return {"rfx_budget": record_of(scope_of(self._terms, state), state)}

    async def aafter_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Do what ``after_agent`` does, without blocking the event loop."""
        return self.after_agent(state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Answer:
        """Call the model within the run's budget, or end the run.

        Raises:
            BudgetExhausted: the budget cannot pay for the call, and ``at_cap`` is ``"raise"``.
        """
        return drive(self._model_flow(request, handler))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Answer:
        """Do what ``wrap_model_call`` does, without blocking the event loop."""
        return await drive_async(self._model_flow(request, handler))

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Call the tool within the run's budget, or say that it was not paid for."""
        return drive(self._tool_flow(request, handler))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Do what ``wrap_tool_call`` does, without blocking the event loop."""
        return await drive_async(self._tool_flow(request, handler))

    def _model_flow(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> Flow[Answer]:
        self._keeps_state(request.runtime)
        scope = scope_of(self._terms, request.state)
        short = scope.refusal  # a tool of this run was not paid for
        if short is None:
            told = self._told(scope, request)
            (reply,) = yield from _within(
                scope,
                Call(
                    lambda: handler(connected_request(told, asynchronous=False)),
                    lambda: handler(connected_request(told, asynchronous=True)),
                ),
            )
            short = _why(scope)
            if short is None or not (reply.error is None or isinstance(reply.error, BudgetExhausted)):
                if reply.error is not None:
                    raise reply.error
                return with_update(reply.value, {"rfx_budget": record_of(scope, request.state)})
        scope.refusal = None
        if self._interrupts and short.scope is scope and short.caps:
            asked = self._asks(scope, short, request.messages)
            if asked is not None:
                message, opened = asked
                update = {"rfx_budget": record_of(scope, request.state, open=opened)}
                return with_update(ModelResponse([message]), update)
        if self._at_cap == "raise":
            raise short.error(best_of(request.messages))
        message = ending(scope, short, request.messages, status="exhausted")
        return with_update(ModelResponse([message]), {"rfx_budget": record_of(scope, request.state)})

    def _asks(self, *_: Any) -> Any:
        """What to ask a person; None here, where nobody is asked."""
        return None

    def _told(self, scope: Scope, request: ModelRequest[Any]) -> ModelRequest[Any]:
        said = countdown(scope) if self._countdown else None
        return request if said is None else request.override(messages=[*request.messages, HumanMessage(said)])

    def _keeps_state(self, runtime: Any) -> None:
        info = getattr(runtime, "execution_info", None)
        if self._interrupts and info is not None and info.thread_id is None:
            raise ConfigError(
                f"{_ME}: interrupts is True, but the agent keeps no state to resume from; give create_agent a "
                "checkpointer, and a thread_id in the config"
            )

    def _tool_flow(self, request: ToolCallRequest, handler: Callable[..., Any]) -> Flow[ToolMessage | Command[Any]]:
        scope = scope_of(self._terms, request.state)
        begun: list[UUID] = []
        (reply,) = yield from _within(scope, Call(handler, handler, (request,)), begun)
        if isinstance(reply.error, BudgetExhausted) and (short := scope.refusal) is not None:
            call = request.tool_call
            text = f"{call['name']} was not run{' to its end' if begun else ''}. {short.sentence}"
            return ToolMessage(text, tool_call_id=call["id"] or "", name=call["name"], status="error")
        if reply.error is not None:
            raise reply.error
        result: ToolMessage | Command[Any] = reply.value
        return result


def _why(scope: Scope) -> Short | None:
    """Why the last call in ``scope`` was refused, where it was: some retry may have made an answer of it."""
    return scope.refusal


def _within(scope: Scope, call: Call, begun: list[UUID] | None = None) -> Flow[Any]:
    """Make ``call`` in ``scope``. What was begun in it and cut off is charged as it was reserved."""
    with joined(scope), watching([] if begun is None else begun) as begun_here:
        try:
            return (yield (call,))
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                for hold in cut_off(begun_here):
                    yield (Call(hold.settle, hold.asettle),)
            raise


@cache
def _asking(cls: Any) -> Any:
    """A class of its own with the hook that asks a person."""
    if issubclass(cls, AskHooks):
        return cls
    return type(cls.__name__, (AskHooks, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
