"""What telling the model rescues, through every way in, beside a feedback loop of 15 lines: one JSON object.

The model is simulated: a draw is right with probability p, and with q where its prompt holds the verifier's feedback.
Draw i of case c uses the same random number in every arm, so the arms pair. Nothing is learned beforehand, no tool is
given, and each case has four candidates at most, the first included.

- ``told``: p = .1, q = .6. Solved and calls per case, with the loop's, and 95 % intervals of the paired difference.
- ``useless``: p = q = .1. A learning policy after 50 cases beside a plain retry.
- ``independent``: p = .2, .5, .8 without feedback, in sequence, beside a sequential retry with the same cap.

    python benchmarks/remedies.py [--cases 1000]
"""

import argparse
import json
import random
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import numpy as np
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from rfx_agent import (
    FunctionVerifier,
    RecoverabilityMiddleware,
    Recovery,
    RetryBudget,
    Rollout,
    SampleRequest,
    Unresolved,
    Verdict,
    recoverable,
    with_recovery,
)
from rfx_agent.policies import LearnedPolicy
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleResult, Usage

HINT = "the fourth line of the letter is missing"


class Model:
    """One case's draws."""

    def __init__(self, p: float, q: float, seed: int) -> None:
        self.p, self.q, self.calls = p, q, 0
        self._random = random.Random(seed)  # noqa: S311  # a simulation

    def draw(self, prompt: str) -> str:
        self.calls += 1
        right = self._random.random() < (self.q if HINT in prompt else self.p)
        return "right" if right else f"wrong {self.calls}"


class Sampled(Sampler):
    """The model as a sampler."""

    name = "simulated"

    def __init__(self, model: Model) -> None:
        self.model = model

    def sample(self, request: SampleRequest) -> SampleResult:
        texts = [self.model.draw(str(request.messages)) for _ in range(request.n)]
        made = tuple(Rollout(text, usage=Usage(40, 10, 1)) for text in texts)
        return SampleResult(made, sum((x.usage for x in made), Usage()))


class Chat(BaseChatModel):
    """The model as LangChain's."""

    model: Any

    @property
    def _llm_type(self) -> str:
        return "simulated"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        message = AIMessage(self.model.draw(" ".join(str(m.content) for m in messages)))
        return ChatResult(generations=[ChatGeneration(message=message)])


def verifier(*, tells: bool) -> FunctionVerifier:
    def judge(text: str) -> Verdict:
        passed = text == "right"
        return Verdict(passed, answer=text, feedback=HINT if tells and not passed else None)

    return FunctionVerifier(judge)


class State(TypedDict):
    messages: Annotated[list[BaseMessage], add_messages]


def engine(model: Model, options: dict[str, Any]) -> bool:
    return bool(Recovery(Sampled(model), **options).run("How much?").outcome.ok)  # type: ignore[union-attr]


def further(options: dict[str, Any]) -> dict[str, Any]:
    """One attempt fewer: the user's own call makes the first candidate, and the budget does not count it."""
    most = options["budget"].attempts
    return {**options, "budget": RetryBudget(attempts=most - 1)}


def chain(model: Model, options: dict[str, Any]) -> bool:
    run = with_recovery(RunnableLambda(model.draw), **further(options))
    return answered(lambda: run.invoke("How much?"))


def node(model: Model, options: dict[str, Any]) -> bool:
    def answer(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(model.draw(" ".join(str(m.content) for m in state["messages"])))]}

    builder = StateGraph(State)
    builder.add_node("answer", recoverable(answer, recovery=Recovery(None, **further(options))))
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile()
    return answered(lambda: graph.invoke({"messages": [HumanMessage("How much?")]})["messages"][-1].content)


def agent(model: Model, options: dict[str, Any]) -> bool:
    made = create_agent(Chat(model=model), [], middleware=[RecoverabilityMiddleware(**further(options))])
    return answered(lambda: made.invoke({"messages": [HumanMessage("How much?")]})["messages"][-1].content)


def answered(call: Callable[[], Any]) -> bool:
    try:
        return bool(call() == "right")
    except Unresolved:
        return False


def loop(model: Model, most: int) -> bool:
    """A feedback loop, as one writes it."""
    prompt = "How much?"
    for _ in range(most):
        answer = model.draw(prompt)
        if answer == "right":
            return True
        prompt = f"How much?\nYou said: {answer}\nThat is wrong: {HINT}\nTry again."
    return False


def retry(model: Model, most: int) -> bool:
    return any(model.draw("How much?") == "right" for _ in range(most))


def paired(ours: list[tuple[bool, int]], theirs: list[tuple[bool, int]]) -> dict[str, Any]:
    """Shares solved and calls per case of both, and the difference's interval over cases."""
    mine, other = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    pick = np.random.default_rng(0).integers(0, len(mine), (2000, len(mine)))
    gap = np.quantile((mine - other)[pick].mean(axis=1), (0.025, 0.975), axis=0)
    return {
        "solved": round(float(mine[:, 0].mean()), 4),
        "calls": round(float(mine[:, 1].mean()), 4),
        "baseline_solved": round(float(other[:, 0].mean()), 4),
        "baseline_calls": round(float(other[:, 1].mean()), 4),
        "solved_minus_baseline": [round(float(x), 4) for x in gap[:, 0]],
        "calls_over_baseline": round(float(mine[:, 1].mean() / other[:, 1].mean()), 4),
    }


def play(p: float, q: float, cases: int, run: Callable[[Model], bool]) -> list[tuple[bool, int]]:
    results = []
    for c in range(cases):
        model = Model(p, q, 7919 * c + 1)
        results.append((run(model), model.calls))
    return results


def learned(p: float, q: float, cases: int, most: int, after: int) -> list[tuple[bool, int]]:
    """The cases behind the first ``after`` ones, which the policy learns from as it learns from all."""
    policy, results = LearnedPolicy(), []
    for c in range(cases):
        model = Model(p, q, 7919 * c + 1)
        recovery = Recovery(Sampled(model), verifier(tells=True), policy=policy, budget=RetryBudget(attempts=most))
        case = recovery.run("How much?")
        results.append((bool(case.outcome and case.outcome.ok), model.calls))
        policy = policy.learn(case)
    return results[after:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    n = parser.parse_args().cases
    most = 4
    options = {"verifier": verifier(tells=True), "budget": RetryBudget(attempts=most)}
    baseline = play(0.1, 0.6, n, lambda model: loop(model, most))
    ways = {"Recovery": engine, "with_recovery": chain, "recoverable": node, "RecoverabilityMiddleware": agent}
    told = {
        name: paired(play(0.1, 0.6, n, lambda model, way=way: way(model, options)), baseline)  # type: ignore[misc]
        for name, way in ways.items()
    }
    plain = play(0.1, 0.1, n, lambda model: retry(model, most))
    independent = {}
    for p in (0.2, 0.5, 0.8):
        for cap in (4, 12):
            silent = {"verifier": verifier(tells=False), "budget": RetryBudget(attempts=cap)}
            ours = play(p, p, n, lambda model, given=silent: engine(model, given))  # type: ignore[misc]
            theirs = play(p, p, n, lambda model, cap=cap: retry(model, cap))  # type: ignore[misc]
            independent[f"p={p} cap={cap}"] = paired(ours, theirs)
    result = {
        "cases": n,
        "told": told,
        "useless": {"learned": paired(learned(0.1, 0.1, n, most, 50), plain[50:])},
        "independent": independent,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
