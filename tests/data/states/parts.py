# ruff: noqa: I001  # as in record.py
"""The doubles and graphs of the recorded states, made of the plain descriptions that ``manifest.json`` holds.

Written for version 0.1, whose names it uses: a part of ``record.py``, and kept as provenance like it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.types import interrupt
from pydantic import PrivateAttr
from typing_extensions import TypedDict

from rfx_agent import (
    Escalation,
    ExactVerifier,
    InFlight,
    JudgeVerifier,
    Price,
    Ratio,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    Rollout,
    SampleRequest,
    SampleResult,
    SamplerError,
    SharedBudget,
    Step,
    ToolError,
    Usage,
    Window,
    add_recovery,
    recoverable,
    recovery_graph,
    step_input,
)
from rfx_agent.calibration import Calibration
from rfx_agent.policies import Belief, DefaultPolicy, LearnedPolicy, Worth
from rfx_agent.stores import SQLStore
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

KILLED = 9
"""Exit status of a process that ended as if it had been killed."""


class Fate:
    """Ends the process when something happens for the n-th time, as a kill would: nothing more is done or told.

    Args:
        at: what, and which time: ``sampler:2``. "" lets it live.
        last: called just before, to save what a process keeps in memory only.
    """

    def __init__(self, at: str = "", last: Callable[[], None] = lambda: None) -> None:
        self._at, self._last = at, last
        self._seen: Counter[str] = Counter()

    def __call__(self, what: str) -> None:
        """``what`` happens."""
        self._seen[what] += 1
        if f"{what}:{self._seen[what]}" == self._at:
            self._last()
            os._exit(KILLED)


class Model(ScriptedSampler):
    """A sampler that gives the entries of a script in order: ``{"text": ..., "id": ...}``, or ``{"error": ...}``.

    A rollout has the entry's id as its response id, read 12 tokens and wrote one a word. Where the request has a
    prefix, the entry's text goes on from it.

    Args:
        script: the entries.
        fate: told ``sampler`` (or ``what``) before each call is answered.
        more: further fields of the rollout of an entry, such as its table of log-probabilities.
    """

    name = "small-1"

    def __init__(
        self,
        script: Sequence[Mapping[str, Any]],
        *,
        fate: Fate | None = None,
        what: str = "sampler",
        continues_prefix: bool = False,
        more: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda text, entry: {},
    ) -> None:
        super().__init__([], continues_prefix=continues_prefix)
        self.script, self._fate, self._what, self._more = list(script), fate or Fate(), what, more

    def sample(self, request: SampleRequest) -> SampleResult:
        """The next ``request.n`` entries."""
        self.requests.append(request)
        self._fate(self._what)
        made = []
        for _ in range(request.n):
            entry = self.script.pop(0) if self.script else {"error": "asked for more texts than it was given"}
            if "error" in entry:
                raise SamplerError(f"{self.name}: {entry['error']}", calls=1)
            text = (request.prefix or "") + entry["text"]
            usage = Usage(12, len(entry["text"].split()), 1)
            more = {"finish_reason": "stop"} | dict(self._more(text, entry))
            made.append(Rollout(text, response_id=entry["id"], usage=usage, **more))
        return SampleResult(tuple(made), sum((x.usage for x in made), Usage()))


class Steers:
    """A steerer that gives the entries of a script, whatever is steered and by which of its operators."""

    name = "small-1-steered"

    def __init__(self, operators: Sequence[str], script: Sequence[Mapping[str, Any]], fate: Fate | None = None) -> None:
        self.operators = tuple(operators)
        self._model = Model(script, fate=fate, what="steerer")

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """The next entry."""
        return self._model.sample(request)

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """The same."""
        return self.steer(step, operator, rollout, request)


class Till(ScriptedTool):
    """A tool that tells ``tool`` to the fate before it runs; an input in ``breaks`` breaks it."""

    name = "till"

    def __init__(self, results: dict[str, Any], fate: Fate | None = None, breaks: Sequence[str] = ()) -> None:
        super().__init__(results)
        self._fate, self._breaks = fate or Fate(), breaks

    def run(self, source: str) -> Any:
        """The scripted answer."""
        self._fate("tool")
        if source in self._breaks:
            raise ToolError(f"{self.name}: broken on {source!r}")
        return super().run(source)


class Reader:
    """A judge's model, which passes an answer that holds ``right`` and carries the prompt's nonce back."""

    name = "judge-1"
    continues_prefix = False

    def __init__(self, right: str) -> None:
        self._right = right
        self.asked = 0

    def sample(self, request: SampleRequest) -> SampleResult:
        """Its verdict."""
        self.asked += 1
        prompt = request.messages[-1]["content"]
        nonce = re.findall(r'"id": "([^"]*)"', prompt)[-1]
        answer = prompt.rsplit("[BEGIN ANSWER", 1)[-1].split("[END ANSWER", 1)[0]
        good = self._right in answer
        said = {"id": nonce, "reasoning": "I added it up.", "score": 9 if good else 2}
        text = json.dumps(said | {"verdict": "pass" if good else "fail"})
        usage = Usage(40, 10, 1)
        return SampleResult((Rollout(text, response_id=f"judge-{nonce}", usage=usage),), usage)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same."""
        return self.sample(request)


class Chat(BaseChatModel):
    """An agent's model that gives the entries of a script: a text and an id, and ``tool_calls`` where it calls some."""

    script: list[dict[str, Any]]
    _asked: list[Any] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return len(self._asked)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self._asked.append(messages)
        entry = self.script.pop(0)
        words = len(entry["text"].split())
        used: Any = {"input_tokens": 12, "output_tokens": words, "total_tokens": 12 + words}
        calls = entry.get("tool_calls", [])
        message = AIMessage(entry["text"], id=entry["id"], tool_calls=calls, usage_metadata=used)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Nothing to bind: the script calls the tools."""
        return self.bind(**kwargs)


class Mortal(SQLStore):
    """A store that tells its process's fate what was just done: ``settled``, ``kept``."""

    fate = Fate()

    def settle(self, hold: Any, actual: Any, record: str | None = None) -> None:
        """See ``SQLStore``."""
        super().settle(hold, actual, record)
        self.fate("settled")

    def keep(self, id: str, record: str) -> str:  # noqa: A002  # the port's word
        """See ``SQLStore``."""
        kept = super().keep(id, record)
        self.fate("kept")
        return kept


# Graphs.


class Parent(TypedDict, total=False):
    """A parent that shares the recovery graph's keys."""

    title: str
    step: Any
    candidate: str | None
    recovery: dict[str, Any]
    outcome: dict[str, Any]
    filed: str


class Talk(TypedDict, total=False):
    """A state that shares no key with the recovery graph."""

    messages: Annotated[list[AnyMessage], add_messages]
    expected: str
    outcome: dict[str, Any]
    filed: str


class Sale(TypedDict, total=False):
    """A state with a question and its answer as text."""

    question: str
    expected: str
    answer: str
    outcome: dict[str, Any]
    filed: str


@tool
def shelf(item: str) -> str:
    """The price of one item on the shelf."""
    return f"{item}: 1,35 €"


def step_of(given: Mapping[str, Any]) -> Step:
    """The step that a description gives."""
    return Step(tuple(given["messages"]), reference=given.get("reference"), id=given["id"])


def input_of(graph: str, given: Mapping[str, Any]) -> Any:
    """What the graph is given for a description's input."""
    match graph:
        case "alone":
            return step_input(step_of(given["step"]), given.get("candidate"))
        case "parent":
            return {"title": given["title"], **step_input(step_of(given["step"]), given.get("candidate"))}
        case "behind":
            return {"messages": [HumanMessage(given["asks"], id=given["id"])], "expected": given["expected"]}
        case "agent":
            return {"messages": [HumanMessage(given["asks"], id=given["id"])]}
        case _:
            return dict(given)


def options_of(
    parts: Mapping[str, Any],
    script: Mapping[str, Any],
    *,
    now: float,
    fate: Fate,
    store: SQLStore | None,
    calibration: Calibration,
    belief: Belief,
) -> dict[str, Any]:
    """Parameters of ``Recovery`` but for the sampler, as the description's ``parts`` say."""
    made: dict[str, Any] = {name: parts[name] for name in _PLAIN if name in parts}
    match parts["verifier"]:
        case {"kind": "exact"}:
            made["verifier"] = ExactVerifier()
        case {"kind": "passes", "texts": texts}:
            made["verifier"] = ScriptedVerifier(texts)
        case {"kind": "judge", "right": right, **more}:
            made["verifier"] = JudgeVerifier(Reader(right), **more)
        case {"kind": "breaks"}:
            made["verifier"] = ScriptedVerifier(_broken)
    match parts.get("policy"):
        case {"kind": "learned", "worth": worth, **more}:
            made["policy"] = LearnedPolicy(belief=belief, worth=Worth(**worth), **more)
        case {"kind": "default", **more}:
            made["policy"] = DefaultPolicy(**more)
    if parts.get("calibrated"):
        made["calibration"] = calibration
    if "budget" in parts:
        made["budget"] = RetryBudget(**parts["budget"])
    if "price" in parts:
        made["price"] = Price(**parts["price"])
    if "tool" in parts:
        made["tool"] = Till(parts["tool"], fate, parts.get("tool_breaks", ()))
    if "steers" in parts:
        made["steerer"] = Steers(parts["steers"], script.get("steerer", ()), fate)
    if "shared" in parts:
        assert store is not None
        limits = tuple(_LIMITS[kind](**more) for kind, more in parts["shared"]["limits"])
        seconds = parts["shared"].get("seconds", 600.0)
        made["shared"] = SharedBudget(store=store, limits=limits, scopes=parts["shared"]["scopes"], seconds=seconds)
    made["escalation"] = Escalation(**parts.get("escalation", {}))
    made["clock"] = lambda: now
    return made


def graph_of(
    graph: str,
    parts: Mapping[str, Any],
    script: Mapping[str, Any],
    options: Mapping[str, Any],
    saver: Any,
    **model: Any,
) -> tuple[Any, Any]:
    """The graph of a description, and the model in it.

    Args:
        graph: ``alone``, ``parent``, ``behind``, ``around`` or ``agent``.
        parts, script: of the description.
        options: what ``options_of`` made of them.
        saver: the checkpointer.
        model: further parameters of ``Model``.
    """
    if graph == "agent":
        chat = Chat(script=list(script.get("chat", ())))
        mine = RecoverabilityMiddleware(**options, **parts["middleware"])
        asking = [HumanInTheLoopMiddleware(interrupt_on={"shelf": True})] if parts.get("asks_before_tools") else []
        return create_agent(chat, [shelf], middleware=[mine, *asking], checkpointer=saver), chat
    sampler = Model(script.get("sampler", ()), continues_prefix=parts.get("continues_prefix", False), **model)
    recovery = Recovery(sampler=sampler, **options)
    match graph:
        case "alone":
            return recovery_graph(recovery, checkpointer=saver), sampler
        case "parent":
            return _parent(recovery, saver), sampler
        case "behind":
            return _behind(recovery, saver, parts["says"]), sampler
        case "around":
            return _around(recovery, saver, list(script.get("node", ()))), sampler
    raise AssertionError(graph)


def _parent(recovery: Recovery, saver: Any) -> Any:
    builder: Any = StateGraph(Parent)
    builder.add_node("think", lambda state: {"title": state["title"].upper()})
    builder.add_node("recover", recovery_graph(recovery))
    builder.add_node("file", lambda state: {"filed": f"{state['title']}: {state['outcome']['status']}"})
    builder.add_edge(START, "think")
    builder.add_edge("think", "recover")
    builder.add_edge("recover", "file")
    return builder.compile(checkpointer=saver)


def _behind(recovery: Recovery, saver: Any, says: Mapping[str, str]) -> Any:
    builder: Any = StateGraph(Talk)
    builder.add_node("solve", lambda state: {"messages": [AIMessage(says["text"], id=says["id"])]})
    builder.add_node("file", lambda state: {"filed": f"{state['outcome']['status']}: {state['messages'][-1].text}"})
    builder.add_edge(START, "solve")
    builder.add_edge("solve", "file")
    add_recovery(builder, "solve", recovery=recovery, reference="expected", outcome="outcome")
    return builder.compile(checkpointer=saver)


def _around(recovery: Recovery, saver: Any, says: list[str]) -> Any:
    def solve(state: Any) -> Any:
        return {"answer": says.pop(0)}

    def review(state: Any) -> Any:
        said = interrupt({"outcome": state["outcome"]["status"], "answer": state["answer"]})
        return {"filed": f"{state['outcome']['status']}, {said}: {state['answer']}"}

    builder: Any = StateGraph(Sale)
    given = {"prompt": "question", "answer": "answer", "reference": "expected", "outcome": "outcome"}
    builder.add_node("solve", recoverable(solve, recovery=recovery, **given))
    builder.add_node("review", review)
    builder.add_edge(START, "solve")
    # What passed or was rescued needs no review.
    builder.add_conditional_edges(
        "solve", lambda state: "review" if state["outcome"]["status"] == "unresolved" else END, ["review", END]
    )
    builder.add_edge("review", END)
    return builder.compile(checkpointer=saver)


def _broken(text: str) -> bool:
    raise RuntimeError("the price list is not there")


_PLAIN = ("seed", "max_tokens", "extra_samples", "resample_draws", "temperature", "tool_temperature")
_LIMITS: dict[str, Any] = {"window": Window, "ratio": Ratio, "in_flight": InFlight}
