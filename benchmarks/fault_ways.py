"""Nine ways into the recovery, sync and async, each asked for one sum by a chat model or a sampler of one server."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from langchain_core.prompts import ChatPromptTemplate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from benchmarks.fault_chat import CAP
from benchmarks.fault_server import sum_in
from rfx_agent import (
    ChatModelSampler,
    Delegate,
    FunctionVerifier,
    JudgeVerifier,
    OpenAISampler,
    ProgramTool,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    Revise,
    Rollout,
    SharedBudget,
    Step,
    Verdict,
    Window,
    add_recovery,
    outcome_of,
    recoverable,
    recovery_graph,
    with_recovery,
)
from rfx_agent.budgets import Ratio
from rfx_agent.budgets.limits import Claim, Grant, Reservation
from rfx_agent.case import Case
from rfx_agent.codec import dump
from rfx_agent.events import Event, Reserved
from rfx_agent.ports import BudgetStore
from rfx_agent.remedies import Extend, Remedy, Retry

__all__ = ["WAYS", "Models", "Trip", "Watched", "text_of"]

_NUMBER = re.compile(r"\d+")


class Watched(BudgetStore):
    """A store as one trip uses it: what was granted and what was charged, in order."""

    def __init__(self, inner: BudgetStore, trip: Trip) -> None:
        self._inner, self._trip = inner, trip

    def reserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002  # the port's word
        return self._granted(self._inner.reserve(id, claims, seconds=seconds), claims)

    async def areserve(self, id: str, claims: Sequence[Claim], *, seconds: float) -> Grant:  # noqa: A002
        return self._granted(await self._inner.areserve(id, claims, seconds=seconds), claims)

    def settle(self, reservation: Reservation, actual: Any, record: str | None = None) -> None:
        self._inner.settle(reservation, actual, record)
        self._settled(reservation, actual)

    async def asettle(self, reservation: Reservation, actual: Any, record: str | None = None) -> None:
        await self._inner.asettle(reservation, actual, record)
        self._settled(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        self._inner.release(reservation)

    async def arelease(self, reservation: Reservation) -> None:
        await self._inner.arelease(reservation)

    def keep(self, id: str, record: str) -> str:  # noqa: A002
        return self._inner.keep(id, record)

    async def akeep(self, id: str, record: str) -> str:  # noqa: A002
        return await self._inner.akeep(id, record)

    def deposit(self, claims: Sequence[Claim]) -> None:
        self._trip.credited += sum(claim.amount for claim in claims)
        self._inner.deposit(claims)

    def accounts(self, prefix: str = "") -> Any:
        return self._inner.accounts(prefix)

    def _granted(self, grant: Grant, claims: Sequence[Claim]) -> Grant:
        if isinstance(grant, Reservation):
            bought = Bought(grant.id, self._trip.asked.tokens if self._trip.asked else 0, normal=not claims)
            self._trip.bought.append(bought)
        return grant

    def _settled(self, reservation: Reservation, actual: Any) -> None:
        bought = next(x for x in reversed(self._trip.bought) if x.id == reservation.id)
        bought.charged = actual.get("tokens", 0)


@dataclass(slots=True)
class Bought:
    """One purchase: tokens reserved for it, and charged; ``normal`` for a step's first draw; ``tries`` as told."""

    id: str
    reserved: int
    charged: int | None = None
    normal: bool = False
    tries: int = 1


@dataclass
class Trip:
    """One run by one way in, and what was seen of it from outside."""

    way: str
    sync: bool
    seed: int
    store: BudgetStore
    hurried: bool = False
    bought: list[Bought] = field(default_factory=list)
    credited: int = 0
    asked: Any = None
    events: list[Event] = field(default_factory=list)
    said: str | None = None
    ok: bool = False
    error: BaseException | None = None
    kept: list[Any] = field(default_factory=list)
    counted: int = 0

    def __post_init__(self) -> None:
        chance = random.Random(f"trip/{self.seed}/{self.way}/{self.sync}")  # noqa: S311  # reproducible
        self.ticket = "".join(chance.choices(string.ascii_lowercase, k=12))
        self.one, self.other = chance.randint(10_000, 99_999), chance.randint(10_000, 99_999)
        self.question = f"Ticket {self.ticket}: what is {self.one} plus {self.other}?"
        self.choice = chance.random()
        self.together = chance.choice((1, 1, 2, 3))

    def hook(self, event: Event) -> None:
        """The recovery's own ``on_event``."""
        self.events.append(event)
        if isinstance(event, Reserved) and not event.refused:
            self.asked = event.cost
        usage = getattr(event, "usage", None)
        if usage is not None and self.bought:  # told behind the settlement; a try that was lost may not have arrived
            self.bought[-1].tries = max(self.bought[-1].tries, usage.calls)

    def shared(self) -> SharedBudget:
        limits = (Window("tenant", "tokens", 10**7, per="day"), Ratio("tenant", "tokens", 1.0, 10**7, per="day"))
        return SharedBudget(store=Watched(self.store, self), limits=limits, scopes={"tenant": self.ticket}, wait=1.0)


@dataclass
class Models:
    """What the trips ask, all of one server: samplers that are shared, and chat models.

    Attributes:
        chat: makes a chat model of a model's name.
        retries: whether the samplers' client tries again, and chat models are asked with LangChain's retry around.
    """

    base_url: str
    key: str
    timeout: float
    chat: Callable[[str], BaseChatModel]

    def __post_init__(self) -> None:
        settings: dict[str, Any] = {"base_url": self.base_url, "api_key": self.key, "timeout": self.timeout}
        make = partial(OpenAISampler, **settings)
        self.plain, self.patient = make("plain", max_retries=0), make("plain", max_retries=2, name="patient")
        self.stronger, self.judge = make("stronger", max_retries=1), make("judge", max_retries=1)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        for sampler in (self.plain, self.patient, self.stronger, self.judge):
            await sampler.aclose()

    def sampler(self, trip: Trip) -> OpenAISampler:
        return self.patient if trip.choice < 0.6 else self.plain

    def model(self, trip: Trip) -> Any:
        model = self.chat("plain")
        retrying = model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        return retrying if trip.choice < 0.3 else model

    def options(self, trip: Trip) -> dict[str, Any]:
        """Parameters of the recovery, the same for every way."""
        remedies: list[Remedy] = [Retry(), Extend(), Revise(), Delegate(self.stronger)]
        verifier: Any = FunctionVerifier(_checked)
        if trip.choice > 0.85:
            verifier = JudgeVerifier(self.judge, rubric="The sum is right.", rates=(0.99, 0.01), max_tokens=CAP)
        seconds = 0.7 if trip.hurried else None
        budget = RetryBudget(attempts=8, samples=10, tokens=60_000, calls=80, seconds=seconds, tool_seconds=10.0)
        return {
            "verifier": verifier,
            "remedies": remedies,
            "tool": ProgramTool() if 0.4 < trip.choice < 0.6 else None,
            "budget": budget,
            "shared": trip.shared(),
            "on_event": trip.hook,
            "concurrency": trip.together,
            "seed": trip.seed,
        }


def _checked(step: Step, rollout: Rollout) -> Verdict:
    asked = sum_in("\n".join(str(m.get("content")) for m in step.messages))
    found = _NUMBER.findall(rollout.text)
    if asked is None or not found:
        return Verdict(False, reason="there is no number", kind="no_answer")
    right = int(found[-1]) == asked[1]
    return Verdict(right, answer=found[-1], reason="" if right else "wrong", feedback="Add the ones again.")


def text_of(output: Any) -> str:
    """The text of what a way gave."""
    return output if isinstance(output, str) else str(getattr(output, "content", output))


def _took(trip: Trip, case: Case) -> None:
    trip.kept.append(dump(case))
    trip.ok = bool(case.outcome and case.outcome.ok)
    trip.said = case.outcome.text if case.outcome else None


def _run(trip: Trip, models: Models, sampler: Any) -> Any:
    recovery = Recovery(sampler, max_tokens=CAP, **models.options(trip))
    if trip.sync:
        return lambda: _took(trip, recovery.run(trip.question))

    async def arun() -> None:
        _took(trip, await recovery.arun(trip.question))

    return arun


def _invoked(trip: Trip, thing: Any, given: Any, took: Callable[[Any], None], config: Any = None) -> Any:
    if trip.sync:
        return lambda: took(thing.invoke(given, config))

    async def ainvoke() -> None:
        took(await thing.ainvoke(given, config))

    return ainvoke


def _said(trip: Trip, read: Callable[[Any], Any]) -> Callable[[Any], None]:
    def took(output: Any) -> None:
        trip.said, trip.ok = text_of(read(output)), True

    return took


def _chain(trip: Trip, models: Models) -> Any:
    chain = ChatPromptTemplate.from_messages([("system", "You add numbers."), ("human", "{q}")]) | models.model(trip)
    wrapped = with_recovery(chain, prompt="q", max_tokens=CAP, sampler=models.sampler(trip), **models.options(trip))
    return _invoked(trip, wrapped, {"q": trip.question}, _said(trip, lambda x: x))


class _Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def _graph(trip: Trip, models: Models, *, behind: bool) -> Any:
    model = models.model(trip)

    def node(state: _Chat) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: _Chat) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    given = {"sampler": models.sampler(trip), "max_tokens": CAP, **models.options(trip)}
    builder: Any = StateGraph(_Chat)
    work: Any = node if trip.sync else anode
    builder.add_node("solve", work if behind else recoverable(work, **given))
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    if behind:
        add_recovery(builder, "solve", on_unresolved="raise", **given)
    return _saved(trip, builder.compile, {"messages": [("user", trip.question)]}, _last)


def _last(state: Any) -> Any:
    return state["messages"][-1]


def _saved(trip: Trip, make: Callable[..., Any], given: Any, read: Callable[[Any], Any]) -> Any:
    saver = InMemorySaver()
    trip.kept += [saver.storage, saver.blobs, saver.writes]
    config = {"configurable": {"thread_id": trip.ticket}}
    return _invoked(trip, make(checkpointer=saver), given, _said(trip, read), config)


def _own_graph(trip: Trip, models: Models) -> Any:
    graph = recovery_graph(sampler=models.sampler(trip), max_tokens=CAP, **models.options(trip))
    saver = InMemorySaver()
    graph.checkpointer = saver
    trip.kept += [saver.storage, saver.blobs, saver.writes]

    def took(state: Any) -> None:
        outcome = outcome_of(state)
        trip.said, trip.ok = outcome.text, outcome.ok

    config = {"configurable": {"thread_id": trip.ticket}}
    return _invoked(trip, graph, {"step": trip.question}, took, config)


def _agent(trip: Trip, models: Models) -> Any:
    # The tool's input is written by the agent's own model or by a sampler.
    driver = models.sampler(trip) if trip.choice < 0.5 else None
    middleware = RecoverabilityMiddleware(sampler=driver, max_tokens=CAP, **models.options(trip))
    model = models.chat("plain")
    make = partial(create_agent, model, middleware=[middleware])
    return _saved(trip, make, {"messages": [("user", trip.question)]}, _last)


WAYS: dict[str, Callable[[Trip, Models], Any]] = {
    "run": lambda trip, models: _run(trip, models, models.sampler(trip)),
    "with_recovery": _chain,
    "recoverable": partial(_graph, behind=False),
    "add_recovery": partial(_graph, behind=True),
    "recovery_graph": _own_graph,
    "agent": _agent,
    "chat_model_sampler": lambda trip, models: _run(trip, models, ChatModelSampler(models.model(trip))),
}
"""Each makes what runs one trip: a function, or a coroutine function where the trip is async."""
