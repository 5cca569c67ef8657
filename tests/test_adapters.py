"""Every way into the recovery does the same, sync and async (see ``adapter_conformance``)."""

import asyncio
from typing import Any

import pytest
from adapter_conformance import EngineWay, GraphWay, Limits, Parts, ReferenceWay, Way, WrapWay, observe, own_candidate
from scenarios import EVERY, SCENARIOS, STEP

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
    routes = scenario.routes if way.limits.takes_max_tokens else scenario.fixed_cap or scenario.routes
    assert [route for route, _, _ in seen.decisions] == routes


class Unwatched(Parts):
    """Without the hook and the policy that watch, so that the wrapper takes its short way."""

    def options(self) -> dict[str, Any]:
        watched = super().options()
        del watched["on_event"]
        return watched | {"policy": self.scenario.recovery().policy}


@both
@pytest.mark.parametrize("name", EVERY)
def test_a_wrapper_that_nobody_watches_gives_the_same_answer(name: str, use_async: bool) -> None:
    way = WrapWay()
    scenario = own_candidate(SCENARIOS[name])
    parts = Unwatched(scenario, scenario.sampler())
    text = asyncio.run(way.arun(parts)) if use_async else way.run(parts)
    seen = observe(way, name, use_async=use_async)
    assert text == seen.text
    assert len(parts.model.requests) == len(seen.requests)


def ask(n: int, spent: int, temperature: float = 0.6, prefix: str | None = None, more: Any = ()) -> dict[str, Any]:
    """A request after ``spent`` samples, from seed 3."""
    return {
        "n": n,
        "temperature": temperature,
        "max_tokens": 64,
        "seed": 3 + 7919 * (spent + 1),
        "prefix": prefix,
        "messages": (*STEP.messages, *more),
    }


TOOL = [{"role": "user", "content": "Use the tool."}]
"""What the scripted tool adds to the step's own prompt."""


@both
@ways
def test_the_model_is_asked_with_these_parameters(way: Way, use_async: bool) -> None:
    """Written out: draws at once and one by one, the lifted draw from the junction, the tool's input."""
    names = ("resample", "draw-by-draw", "local-temp", "tool")
    resample, by_draw, lifted, tool = [observe(way, name, use_async=use_async) for name in names]
    if way.limits == Limits():
        assert resample.requests == [ask(3, 0), ask(4, 3)]
        assert by_draw.requests == [ask(1, 0), ask(1, 1), ask(1, 2)]
        assert lifted.requests == [ask(3, 0), ask(1, 3, 1.0, "a " * 7)]
        assert lifted.decisions[0] == ("resample", "local_temp", "worth:local_temp")
        assert tool.requests == [ask(3, 0), ask(1, 3, more=TOOL)]
    else:
        own = {name: ask(1, 0)[name] for name in way.limits.draw_fields}
        assert resample.requests == [own] * 7
        assert by_draw.requests == [own] * 3
        assert lifted.requests == [own] * 4
        assert lifted.decisions[0] == ("resample", "retry", "worth:retry")
        assert tool.requests == [own] * 3 + [ask(1, 3, more=TOOL)]
    assert resample.decisions[0] == ("resample", "retry", "worth:retry")
    assert (resample.text, by_draw.text, tool.text) == ("42", "42", "42")
    assert (lifted.text or "").endswith("42")
