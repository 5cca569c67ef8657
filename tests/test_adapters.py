"""Every way into the recovery does the same, sync and async (see ``adapter_conformance``)."""

import asyncio
from typing import Any

import pytest
from adapter_conformance import EngineWay, GraphWay, Limits, Parts, ReferenceWay, Way, WrapWay, observe, own_candidate
from scenarios import EVERY, SCENARIOS, STEP

from rfx_agent.testing import ScriptedSampler

WAYS: list[Way] = [
    EngineWay(),
    GraphWay(),
    WrapWay(),
    WrapWay(streaming=True),
]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
both = pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])


@both
@ways
@pytest.mark.parametrize("name", EVERY)
def test_a_way_in_does_what_the_engine_does(way: Way, name: str, use_async: bool) -> None:
    assert observe(way, name, use_async=use_async) == observe(ReferenceWay(way.limits), name, use_async=False)


@both
@ways
@pytest.mark.parametrize("name", EVERY)
def test_a_way_in_ends_as_the_scenario_says(way: Way, name: str, use_async: bool) -> None:
    scenario = SCENARIOS[name]
    seen = observe(way, name, use_async=use_async)
    assert (seen.outcome[0], seen.outcome[4]) == (scenario.status, scenario.reason)
    assert (seen.text is None) == (scenario.status == "unresolved")
    routes = scenario.routes
    if name == "out-of-reach" and not way.limits.takes_temperature:
        routes = ["resample", "escalate"]  # there is no lifted round
    assert [route for route, _, _ in seen.decisions] == routes


class Unwatched(Parts):
    """Without the policy and the hook that watch, so that the wrapper takes its short way."""

    def options(self) -> dict[str, Any]:
        return {name: part for name, part in super().options().items() if name not in ("policy", "on_event")}


@both
@pytest.mark.parametrize("name", EVERY)
def test_a_wrapper_that_nobody_watches_gives_the_same_answer(name: str, use_async: bool) -> None:
    way = WrapWay()
    scenario = own_candidate(SCENARIOS[name])
    parts = Unwatched(scenario, ScriptedSampler(scenario.texts))
    text = asyncio.run(way.arun(parts)) if use_async else way.run(parts)
    seen = observe(way, name, use_async=use_async)
    assert text == seen.text
    assert len(parts.model.requests) == len(seen.requests)


def ask(n: int, seed: int, temperature: float = 0.6, more: Any = ()) -> dict[str, Any]:
    messages = (*STEP.messages, *more)
    return {
        "n": n,
        "temperature": temperature,
        "max_tokens": 64,
        "seed": seed,
        "prefix": None,
        "messages": messages,
    }


SEEDS = {0: 3 + 7919, 3: 3 + 7919 * 4, 4: 3 + 7919 * 5}  # per sample spent, from seed 3
TOOL = [{"role": "user", "content": "Use the tool."}]
"""What the scripted tool adds to the step's own prompt."""


@both
@ways
def test_the_model_is_asked_with_these_parameters(way: Way, use_async: bool) -> None:
    """Written out: the extra draws at the recovery's temperature, the lifted round, the tool's input."""
    resample, tool = observe(way, "resample", use_async=use_async), observe(way, "tool", use_async=use_async)
    if way.limits == Limits():
        assert resample.requests == [ask(3, SEEDS[0]), ask(4, SEEDS[3], 1.0)]
        assert resample.decisions[0] == ("resample", "local_temp", "rescue:local_temp")
        assert tool.requests == [ask(3, SEEDS[0]), ask(1, SEEDS[3], more=TOOL)]
    else:
        own = {name: ask(1, 0)[name] for name in way.limits.draw_fields}
        assert resample.requests == [own] * 7
        assert resample.decisions[0] == ("resample", "retry", "gate:stochastic")
        assert tool.requests == [own] * 3 + [ask(1, SEEDS[3], more=TOOL)]
    assert (resample.text, tool.text) == ("42", "42")
