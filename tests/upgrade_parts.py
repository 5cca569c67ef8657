"""The recorded states of version 0.1, opened with this version: the doubles, the graphs, and how a thread stands.

``data/states/record.py`` and ``parts.py`` made the states with the old version's API. This does the same with today's,
from the same plain descriptions in ``manifest.json``. What 0.1 took for granted is given by name (``DEFAULTS``,
``CAPS``), so that a later default changes nothing here. So is what it decided and how it lifted a temperature
(``DefaultOf01``, ``LocalTempOf01``): what is compared is how a state is read and what is paid for, not which policy is
the better one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import states
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.types import Command, interrupt
from pydantic import PrivateAttr
from typing_extensions import TypedDict

from rfx_agent import (
    Case,
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
    SharedBudget,
    SQLStore,
    Step,
    Usage,
    Window,
    add_recovery,
    recoverable,
    recovery_graph,
    step_input,
)
from rfx_agent.budgets.step import Ledger
from rfx_agent.case import Decision, Diagnosis
from rfx_agent.codec import load, plain
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.run import Run
from rfx_agent.errors import SamplerError, ToolError
from rfx_agent.evidence.calibration import Calibration
from rfx_agent.evidence.posterior import mean, update
from rfx_agent.evidence.routing import RoutingRule, operator_of
from rfx_agent.policies import Belief, DefaultPolicy, LearnedPolicy
from rfx_agent.policies.base import draft, settled
from rfx_agent.policies.worth import Worth
from rfx_agent.ports import Remedy, Sampler, Steerer
from rfx_agent.records import Spend
from rfx_agent.remedies import Retry
from rfx_agent.remedies.base import before_junction
from rfx_agent.remedies.retry import draw
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier

MANIFEST = states.manifest()
CAPS: dict[str, Any] = {
    "attempts": 12,
    "samples": 16,
    "tokens": 32_000,
    "usd": None,
    "seconds": 300.0,
    "tool_seconds": 30.0,
    "escalations": 1,
    "calls": 64,
}
"""The budget that 0.1 had where none was given; it is not written into a state."""
DEFAULTS = {"extra_samples": 3, "concurrency": 4, "tool_temperature": 0.6, "verdict_seconds": 60.0}
RENAMED = {"resample_draws": "concurrency"}
"""Parameters that are called differently now."""
WORTH = {"rescue": 20.0, "minute": 1.0}
"""What 0.1 held a rescue and a person's minute to be worth."""
LIFTED = 1.0
"""The temperature of 0.1's ``local_temp``."""

# The doubles. Their names (small-1, small-1-steered, till) are part of the ids of recorded calls.


class Model(ScriptedSampler):
    """Gives the entries of a script, with their ids: 12 tokens read, and one a word written."""

    name = "small-1"

    def __init__(self, script: Sequence[Mapping[str, Any]], *, continues_prefix: bool = False) -> None:
        super().__init__([], continues_prefix=continues_prefix)
        self.script = list(script)

    def sample(self, request: SampleRequest) -> SampleResult:
        """The next ``request.n`` entries."""
        self.requests.append(request)
        made = []
        for _ in range(request.n):
            if not self.script:
                raise SamplerError(f"{self.name}: asked for more texts than it was given", calls=1)
            entry = self.script.pop(0)
            usage = Usage(12, len(entry["text"].split()), 1)
            text = (request.prefix or "") + entry["text"]
            made.append(Rollout(text, response_id=entry["id"], usage=usage, finish_reason="stop"))
        return SampleResult(tuple(made), sum((x.usage for x in made), Usage()))


class Steers(Steerer):
    """Gives the entries of a script, whatever is steered."""

    name = "small-1-steered"

    def __init__(self, operators: Sequence[str], script: Sequence[Mapping[str, Any]]) -> None:
        self.operators = tuple(operators)
        self._model = Model(script)

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """The next entry."""
        return self._model.sample(request)


class Till(ScriptedTool):
    """A tool that breaks on some inputs."""

    name = "till"

    def __init__(self, results: dict[str, Any], breaks: Sequence[str] = ()) -> None:
        super().__init__(results)
        self._breaks = breaks

    def run(self, source: str) -> Any:
        """The scripted answer."""
        if source in self._breaks:
            raise ToolError(f"{self.name}: broken on {source!r}")
        return super().run(source)


class Reader(Sampler):
    """A judge's model: passes an answer that holds ``right``, and repeats the prompt's nonce."""

    name = "judge-1"

    def __init__(self, right: str) -> None:
        self._right = right

    def sample(self, request: SampleRequest) -> SampleResult:
        """Its verdict."""
        prompt = request.messages[-1]["content"]
        nonce = re.findall(r'"id": "([^"]*)"', prompt)[-1]
        answer = prompt.rsplit("[BEGIN ANSWER", 1)[-1].split("[END ANSWER", 1)[0]
        good = self._right in answer
        said = {"id": nonce, "reasoning": "I added it up.", "score": 9 if good else 2}
        text = json.dumps(said | {"verdict": "pass" if good else "fail"})
        usage = Usage(40, 10, 1)
        return SampleResult((Rollout(text, response_id=f"judge-{nonce}", usage=usage),), usage)


class Chat(BaseChatModel):
    """An agent's model that gives the entries of a script."""

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


# What 0.1 decided, and the one remedy that did something else then.


@dataclass(frozen=True)
class LocalTempOf01(Remedy):
    """A draw at a lifted temperature wherever the sampler takes one; from the junction where the decision says so."""

    name: str = field(default="local_temp", init=False)
    node: str = field(default="resample", init=False)
    words: str = field(default="a draw at a lifted temperature", init=False)

    def bound(self, run: Run, case: Case) -> Spend | str:
        """A plain draw's."""
        if run.sampler is None or not run.sampler.takes_temperature:
            return "there is no temperature to lift"
        return costs.of_draw(run, case) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """As many draws as a retry makes."""
        continues = case.decision.from_junction and run.sampler is not None and run.sampler.continues_prefix
        prefix = before_junction(case) if continues else ""
        return (yield from draw(run, case, self.name, run.settings.concurrency, LIFTED, prefix))


NODES = {
    "retry": "resample",
    "local_temp": "resample",
    "tool": "tool_verify",
    "sparse_steer": "steer",
    "sparse_steer_random": "steer",
    "dense_steer": "steer",
}
"""The remedies of 0.1, in the order in which its policy looked at them, and their nodes."""


@dataclass(frozen=True, kw_only=True)
class DefaultOf01:
    """What ``DefaultPolicy`` of 0.1 decided, on the priors of its calibration."""

    calibration: Calibration
    rounds: Mapping[str, int] = field(default_factory=lambda: {"retry": 4, "tool": 2})
    gate: float = 0.5
    margin: float = 0.05
    floor: float = 0.05
    version: str = field(default="default/1", init=False)

    def decide(self, diagnosis: Diagnosis, ledger: Ledger) -> Decision:
        """The next route."""
        if (decision := settled(self, diagnosis, ledger)) is not None:
            return decision
        d = replace(diagnosis, posterior=self._posterior(diagnosis))
        rescue = {name: mean(beta) for name, beta in d.posterior.items()}
        untried = [x for x in NODES if x in d.cost and d.tried.get(x, 0) < self.rounds.get(x, 1)]
        if not untried:
            return self._escalates(d, ledger, "no_route", "Everything that could help was tried.")
        options = [name for name in untried if not ledger.shortfall(d.cost[name])]
        if not options:
            cap = ledger.shortfall(d.cost[min(untried, key=lambda name: d.cost[name].tokens)])[0]
            return self._escalates(d, ledger, f"budget:{cap}", f"The budget has too few {cap} left.")
        best = max(options, key=lambda name: rescue[name])
        if rescue[best] < self.floor:
            said = (
                f"The best option left, {d.words[best]}, rescues with {rescue[best]:.0%}, below the floor of "
                f"{self.floor:.0%}."
            )
            return self._escalates(d, ledger, "out_of_reach", said, regime="out_of_reach")
        others = [name for name in options if name != "retry"]
        other = max(others, key=lambda name: rescue[name], default=None)
        chance = rescue["retry"]
        structural = other is not None and chance <= self.gate and rescue[other] - chance >= self.margin
        if not structural and "retry" in options:
            return self._decides(d, ledger, "retry", "gate:stochastic", "stochastic")
        asked = None
        if d.routable and d.z is not None and all(name in d.z for name in RoutingRule().operators):
            asked = operator_of(d.z)
        options = others or options
        if asked in options and asked is not None:
            remedy, reason = asked, f"rule:{asked}"
        elif asked is not None and "tool" in options:
            remedy, reason = "tool", f"rule:{asked}>tool"
        else:
            remedy = max(options, key=lambda name: rescue[name])
            reason = f"rescue:{remedy}"
        regime = "structural" if structural else "stochastic"
        junction = remedy == "local_temp" or (remedy == "tool" and asked == "sparse_steer")
        return self._decides(d, ledger, remedy, reason, regime, from_junction=junction)

    def _posterior(self, d: Diagnosis) -> dict[str, tuple[float, float]]:
        prior, failed = self.calibration.prior, {**d.failed, "retry": d.draws - d.passes}
        beliefs = {name: update(prior(name), 0, failed.get(name, 0)) for name in NODES}
        return {**beliefs, "retry": update(prior("retry"), d.passes, d.draws)}

    def _escalates(self, d: Diagnosis, ledger: Ledger, reason: str, sentence: str, **more: Any) -> Decision:
        return draft(self, d, ledger, "escalate", "human", reason, sentence, expected=_rescue(d), **more)

    def _decides(self, d: Diagnosis, ledger: Ledger, remedy: str, reason: str, regime: Any, **more: Any) -> Decision:
        said = f"{d.passes} of {d.draws} draws passed: {d.words[remedy]} is next."
        return draft(self, d, ledger, d.nodes[remedy], remedy, reason, said, expected=_rescue(d), regime=regime, **more)


def _rescue(d: Diagnosis) -> dict[str, float]:
    return {name: mean(beta) for name, beta in d.posterior.items()}


# The graphs. The names of nodes and keys are part of what is recorded.


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
    return Step(tuple(given["messages"]), expected=given.get("reference"), id=given["id"])


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
    return dict(given)


def options_of(
    parts: Mapping[str, Any], script: Mapping[str, Any], *, now: float, store: SQLStore | None = None
) -> dict[str, Any]:
    """Parameters of ``Recovery`` but for the sampler, as the description's ``parts`` say."""
    plain_ = ("seed", "max_tokens", "extra_samples", "resample_draws", "temperature", "tool_temperature")
    made: dict[str, Any] = DEFAULTS | {RENAMED.get(name, name): parts[name] for name in plain_ if name in parts}
    match parts["verifier"]:
        case {"kind": "exact"}:
            made["verifier"] = ExactVerifier()
        case {"kind": "passes", "texts": texts}:
            made["verifier"] = ScriptedVerifier(texts)
        case {"kind": "judge", "right": right, **more}:
            made["verifier"] = JudgeVerifier(Reader(right), **more)
        case _:
            raise AssertionError(parts["verifier"])
    made["calibration"] = Calibration.published()
    if parts.get("calibrated"):
        made["calibration"] = Calibration.load(states.STATES / "calibration.json")
    made["remedies"] = [Retry(), LocalTempOf01()]
    if "remedies" in parts:
        made["remedies"] = parts["remedies"]
    match parts["policy"]:
        case {"kind": "learned", "explore": explore, "worth": worth, "per_round": {"local_temp": n}}:
            assert n == made["concurrency"]  # it is read off the attempts now
            belief = Belief.from_json((states.STATES / "belief.json").read_bytes())
            made["policy"] = LearnedPolicy(belief=belief, worth=Worth(**WORTH | worth), explore=explore)
        case {"kind": "default", **more}:
            made["policy"] = DefaultOf01(calibration=made["calibration"], **more)
        case {"kind": "today"}:
            made["policy"] = DefaultPolicy()
        case _:
            raise AssertionError(parts["policy"])
    made["budget"] = RetryBudget(**(CAPS | parts.get("budget", {})))
    if "price" in parts:
        made["price"] = Price(**parts["price"])
    if parts.get("tool"):
        made["tool"] = Till(parts["tool"], parts.get("tool_breaks", ()))
    if parts.get("steers"):
        made["steerer"] = Steers(parts["steers"], script.get("steerer", ()))
    if "shared" in parts:
        assert store is not None
        kinds: dict[str, Any] = {"window": Window, "ratio": Ratio, "in_flight": InFlight}
        limits = tuple(kinds[kind](**more) for kind, more in parts["shared"]["limits"])
        seconds = parts["shared"].get("seconds", 600.0)
        made["shared"] = SharedBudget(store=store, limits=limits, scopes=parts["shared"]["scopes"], seconds=seconds)
    made["escalation"] = Escalation(**parts["escalation"])
    made["clock"] = lambda: now
    return made


def graph_of(
    graph: str, parts: Mapping[str, Any], script: Mapping[str, Any], options: Mapping[str, Any], saver: Any
) -> tuple[Any, Any]:
    """The graph of a description, and the model in it."""
    if graph == "agent":
        chat = Chat(script=list(script.get("chat", ())))
        mine = RecoverabilityMiddleware(**options, **parts["middleware"])
        asking = [HumanInTheLoopMiddleware(interrupt_on={"shelf": True})] if parts.get("asks_before_tools") else []
        return create_agent(chat, [shelf], middleware=[mine, *asking], checkpointer=saver), chat
    sampler = Model(script.get("sampler", ()), continues_prefix=parts.get("continues_prefix", False))
    recovery = Recovery(sampler, **{"temperature": 0.6, "accept": 0.0} | dict(options))
    builder: Any
    match graph:
        case "alone":
            return recovery_graph(recovery, checkpointer=saver, interrupts=True), sampler
        case "parent":
            builder = StateGraph(Parent)
            builder.add_node("think", lambda state: {"title": state["title"].upper()})
            builder.add_node("recover", recovery_graph(recovery, interrupts=True))
            builder.add_node("file", lambda state: {"filed": f"{state['title']}: {state['outcome']['status']}"})
            builder.add_edge(START, "think")
            builder.add_edge("think", "recover")
            builder.add_edge("recover", "file")
        case "behind":
            builder = behind(recovery, parts["says"], outcome="outcome")
            builder.add_node(
                "file", lambda state: {"filed": f"{state['outcome']['status']}: {state['messages'][-1].text}"}
            )
            builder.add_edge("recover", "file")
        case _:
            builder = _around(recovery, list(script.get("node", ())))
    return builder.compile(checkpointer=saver), sampler


def behind(recovery: Recovery, says: Mapping[str, str], **more: Any) -> Any:
    """A graph with recovery behind its node ``solve``, and nothing behind that."""
    builder: Any = StateGraph(Talk)
    builder.add_node("solve", lambda state: {"messages": [AIMessage(says["text"], id=says["id"])]})
    builder.add_edge(START, "solve")
    add_recovery(builder, "solve", recovery=recovery, expected="expected", **more, interrupts=True)
    return builder


def _around(recovery: Recovery, says: list[str]) -> Any:
    def solve(state: Any) -> Any:
        return {"answer": says.pop(0)}

    def review(state: Any) -> Any:
        said = interrupt({"outcome": state["outcome"]["status"], "answer": state["answer"]})
        return {"filed": f"{state['outcome']['status']}, {said}: {state['answer']}"}

    builder: Any = StateGraph(Sale)
    given: Any = {"prompt": "question", "answer": "answer", "expected": "expected", "outcome": "outcome"}
    builder.add_node("solve", recoverable(solve, recovery=recovery, **given))
    builder.add_node("review", review)
    builder.add_edge(START, "solve")
    builder.add_conditional_edges(
        "solve", lambda state: "review" if state["outcome"]["status"] == "unresolved" else END, ["review", END]
    )
    builder.add_edge("review", END)
    return builder


# Threads: a way to go on with one, and how it stands then.


_memory = cache(states.load_memory)


def memory_of(name: str) -> InMemorySaver:
    """A new ``InMemorySaver`` with what the recorded one has of a thread."""
    kept, saver = _memory(), InMemorySaver()
    for namespace, checkpoints in kept.storage[name].items():
        saver.storage[name][namespace].update(checkpoints)
    saver.writes.update({key: dict(value) for key, value in kept.writes.items() if key[0] == name})
    saver.blobs.update({key: value for key, value in kept.blobs.items() if key[0] == name})
    return saver


@contextmanager
def saver_of(kind: str, name: str, folder: Path) -> Any:
    """The recorded checkpointer, to be written to; with that thread at least."""
    if kind == "memory":
        yield memory_of(name)
        return
    with SqliteSaver.from_conn_string(str(states.unpacked("checkpoints.sqlite.gz", folder))) as saver:
        yield saver


@asynccontextmanager
async def asaver_of(kind: str, name: str, folder: Path) -> Any:
    """The same for async code."""
    if kind == "memory":
        yield memory_of(name)
        return
    async with AsyncSqliteSaver.from_conn_string(str(states.unpacked("checkpoints.sqlite.gz", folder))) as saver:
        yield saver


class Opened:
    """A recorded thread, opened on a checkpointer.

    Args:
        name: of the thread.
        saver: the checkpointer.
        folder: where the copy of the shared budgets' store goes.
        way: how to go on: what the doubles say (``script``), at what time (``at``), with what ``parts`` changed.
    """

    def __init__(self, name: str, saver: Any, folder: Path, way: Mapping[str, Any]) -> None:
        entry = MANIFEST["threads"][name]
        self.graph, parts = entry["graph"], {**entry["parts"], **way.get("parts", {})}
        self.config: Any = {"configurable": {"thread_id": name}}
        now = MANIFEST["clock"] + way["at"]
        self.store = store_of(folder, now) if "shared" in parts else None
        options = options_of(parts, way["script"], now=now, store=self.store)
        self.saver = saver
        self.compiled, self.model = graph_of(self.graph, parts, way["script"], options, saver)

    def given(self, way: Mapping[str, Any]) -> Any:
        """What the graph is invoked with."""
        match way["do"]:
            case "run":
                return input_of(self.graph, way["input"])
            case "resume":
                return Command(resume=way["reply"])
        return None

    def went_on(self, way: Mapping[str, Any]) -> dict[str, Any]:
        """What comes of going on."""
        before = self._accounts()
        if way["do"] != "read":
            self.compiled.invoke(self.given(way), self.config, durability="sync")
        state, found = self.compiled.get_state(self.config), list(self.saver.list(self.config))
        return self._gave(state, found, before)

    async def awent_on(self, way: Mapping[str, Any]) -> dict[str, Any]:
        """The same for async code."""
        before = self._accounts()
        if way["do"] != "read":
            await self.compiled.ainvoke(self.given(way), self.config, durability="sync")
        state, found = await self.compiled.aget_state(self.config), [x async for x in self.saver.alist(self.config)]
        return self._gave(state, found, before)

    def _gave(self, state: Any, found: list[Any], before: Mapping[str, Any]) -> dict[str, Any]:
        gives = {"stands": stands(state, found), "asked": self._asked()}
        if self.store is not None:
            gives["accounts"] = changed(before, self._accounts())
            self.store.close()
        return gives

    def _accounts(self) -> dict[str, Any]:
        return {} if self.store is None else accounts(self.store)

    def _asked(self) -> Any:
        if self.graph == "agent":
            return self.model.asked
        return [
            {"n": x.n, "temperature": x.temperature, "seed": x.seed, "prefix": x.prefix} for x in self.model.requests
        ]


class Order:
    """A recorded run without a graph, under the id that it can be resumed under, on a copy of the recorded store."""

    def __init__(self, name: str, folder: Path, way: Mapping[str, Any]) -> None:
        self.name, self.entry = name, MANIFEST["orders"][name]
        parts, now = self.entry["parts"], MANIFEST["clock"] + way["at"]
        self.store = store_of(folder, now)
        self.before = accounts(self.store)
        options = options_of(parts, way["script"], now=now, store=self.store)
        self.model = Model(way["script"].get("sampler", ()), continues_prefix=parts.get("continues_prefix", False))
        self.recovery = Recovery(self.model, **{"temperature": 0.6, "accept": 0.0} | options)

    @property
    def given(self) -> tuple[Step, str | None]:
        """The step and its candidate."""
        return step_of(self.entry["input"]["step"]), self.entry["input"].get("candidate")

    def gave(self, case: Case) -> dict[str, Any]:
        """What came of it."""
        more = changed(self.before, accounts(self.store))
        self.store.close()
        return {"case": summary(case), "asked": len(self.model.requests), "accounts": more}


def stands(state: Any, found: list[Any]) -> dict[str, Any]:
    """How a thread stands, in the words of 0.1, without what is measured and what is drawn anew in each run.

    Args:
        state: the graph's.
        found: the thread's checkpoints, of every namespace.
    """
    keys = {key for key in state.values if key != "seen" and (key != "messages" or state.values[key])}  # 0.1 had none
    told: dict[str, Any] = {"next": list(state.next), "keys": sorted(keys)}
    if state.interrupts:
        (asked,) = state.interrupts
        rfx = asked.value.get("rfx")
        told["asks"] = asked.value if rfx is None else {"rfx": without(rfx), "error": asked.value.get("error")}
    case = case_in(found)
    if case is not None:
        told["case"] = summary(case)
    told |= {key: state.values[key] for key in ("outcome", "answer", "filed", "expected") if key in state.values}
    if state.values.get("messages"):
        told["messages"] = [[x.type, x.text] for x in state.values["messages"]]
        told["marks"] = [x.response_metadata["rfx"] for x in state.values["messages"] if "rfx" in x.response_metadata]
    for key in ("rfx_run", "rfx_thread"):
        if key in state.values:
            told[key] = without(state.values[key])
    return told


def case_in(found: list[Any]) -> Case | None:
    """The case in the newest checkpoint that has one, whatever its namespace; an agent's open one."""
    kept = []
    for one in found:
        values = one.checkpoint["channel_values"]
        if case := values.get("recovery") or (values.get("rfx_open") or {}).get("case"):
            kept.append((one.checkpoint["id"], case))
    return load(Case, max(kept, key=lambda x: x[0])[1]) if kept else None


def store_of(folder: Path, now: float) -> SQLStore:
    """A copy of the recorded store of shared budgets, whose clock stands still."""
    path = folder / "budget.sqlite"
    if not path.exists():
        states.unpacked("budget.sqlite.gz", folder)
    return SQLStore(f"sqlite:///{path}", clock=lambda: now)


def without(record: Any) -> Any:
    """``record`` without what is measured by a real clock, and without ids that are drawn anew in each run."""
    if isinstance(record, Mapping):
        gone = {*MANIFEST["unmeasured"], "id"}
        return {key: without(value) for key, value in record.items() if key not in gone}
    return [without(x) for x in record] if isinstance(record, (list, tuple)) else record


def summary(case: Case) -> dict[str, Any]:
    """What a case comes to, under the names of 0.1."""
    spent = plain(case.ledger.spent)
    return {
        "step": case.step.id,
        "reference": case.step.expected,
        "outcome": None if case.outcome is None else plain(case.outcome, mode="json"),
        "ask": None if case.ask is None else asdict(case.ask),
        "spent": {key: value for key, value in spent.items() if key not in MANIFEST["unmeasured"]},
        "reserved": plain(case.ledger.reserved),
        "decisions": [[x.route, x.remedy, x.regime, x.reason, x.policy, x.evidence] for x in case.decisions],
        "attempts": [[x.remedy, x.asked, x.got, x.misses, x.tokens] for x in case.attempts],
        "rollouts": [[x.id, x.remedy, x.passed, x.answer, x.junction, x.peak] for x in case.rollouts],
        "blocked": case.blocked_by,
        "notes": list(case.notes),
        "holds": case.holds,
    }


def accounts(store: SQLStore) -> dict[str, dict[str, Any]]:
    """Every account, by name."""
    return {x.name: plain(x) for x in store.accounts()}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """How much more each account has granted, spent, lost."""
    counts = ("granted", "spent", "reserved", "lost", "refused")
    more = {
        name: {key: n for key in counts if (n := row.get(key, 0) - before.get(name, {}).get(key, 0))}
        for name, row in after.items()
    }
    return {name: row for name, row in more.items() if row}


def close_to(value: Any, near: Callable[[float], Any]) -> Any:
    """``value`` with each amount of money in it as ``near`` has it."""
    if isinstance(value, Mapping):
        return {
            key: near(item) if key == "usd" and isinstance(item, float) else close_to(item, near)
            for key, item in value.items()
        }
    return [close_to(x, near) for x in value] if isinstance(value, (list, tuple)) else value
