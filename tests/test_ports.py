"""Base classes of the ports: defaults, what does not derive from them, and what cannot be used."""

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import pytest

from rfx_agent import ConfigError, Recovery, Rollout, SampleRequest, SampleResult, Step, Usage, Verdict
from rfx_agent.accepted import adopted
from rfx_agent.ports import Sampler, Scorer, Steerer, Tool, Verifier
from rfx_agent.records import ScoreResult
from rfx_agent.testing import ScriptedSampler, ScriptedTool, ScriptedVerifier


class OneSided(Sampler):
    """Nothing but what must be there."""

    name = "one-sided"

    def sample(self, request: SampleRequest) -> SampleResult:
        return SampleResult((Rollout("42"),), Usage(1, 1, 1))


class Strict(Verifier):
    name = "strict"

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return Verdict(rollout.text == "42")


def test_a_port_has_a_default_for_everything_that_is_optional() -> None:
    sampler, verifier = OneSided(), Strict()
    assert (sampler.continues_prefix, sampler.takes_temperature, sampler.max_calls) == (False, True, 1)
    assert (verifier.needs_peers, verifier.instant) == (False, False)
    assert verifier.bound(Step.of("q"), Rollout("a")) is None
    case = asyncio.run(Recovery(sampler, verifier).arun("What is 6 times 7?", "41"))
    assert case.outcome is not None
    assert case.outcome.status == "rescued"


class Foreign:
    """Has a sampler's members without deriving from it, and one of the optional ones."""

    name = "foreign"
    max_calls = 3

    def __init__(self) -> None:
        self.asked = 0

    def sample(self, request: SampleRequest) -> SampleResult:
        self.asked += 1
        return SampleResult((Rollout("42"),), Usage(1, 1, 1))


def test_an_object_with_the_required_members_is_accepted_with_the_defaults() -> None:
    given = Foreign()
    sampler = adopted(Sampler, given, where="recovery: sampler")
    assert isinstance(sampler, Sampler)
    assert (sampler.name, sampler.max_calls, sampler.takes_temperature) == ("foreign", 3, True)
    asyncio.run(sampler.asample(SampleRequest(({"role": "user", "content": "q"},))))
    assert given.asked == 1
    assert sampler.asked == 1  # type: ignore[attr-defined]  # its own members are reached through it


def test_it_can_be_copied_and_says_what_it_is() -> None:
    sampler = adopted(Sampler, Foreign(), where="x")
    assert copy.copy(sampler).name == copy.deepcopy(sampler).name == "foreign"
    assert repr(sampler).startswith("Sampler of <")


def test_an_object_that_derives_is_itself() -> None:
    sampler = OneSided()
    assert adopted(Sampler, sampler, where="x") is sampler
    assert Recovery(sampler, Strict()).sampler is sampler


@pytest.mark.parametrize(
    ("port", "value", "missing"),
    [
        (Sampler, object(), "name, sample"),
        (Sampler, OneSided, "name, sample"),
        (Verifier, lambda text: True, "name, verify"),
        (Tool, ScriptedVerifier([]), "bound, name, parse, prompt, repair, run"),
        (Scorer, ScriptedSampler([]), "name, score"),
        (Steerer, ScriptedSampler([]), "name, operators, steer"),
    ],
)
def test_anything_else_is_refused_with_what_it_lacks(port: type[Any], value: Any, missing: str) -> None:
    with pytest.raises(
        ConfigError, match=f"recovery: part is .*rfx_agent.ports.{port.__name__}, or that has {missing}"
    ):
        adopted(port, value, where="recovery: part")


def test_a_verifier_that_is_not_given_is_named() -> None:
    with pytest.raises(ConfigError, match="recovery: verifier is None; give an instance"):
        Recovery(OneSided())


def test_without_a_sampler_a_candidate_is_needed_and_no_remedy_is_available() -> None:
    recovery = Recovery(verifier=Strict(), tool=ScriptedTool({}))
    with pytest.raises(ConfigError, match="has no candidate and sampler is None"):
        recovery.run("What is 6 times 7?")
    passed = recovery.run("What is 6 times 7?", "42").outcome
    failed = recovery.run("What is 6 times 7?", "41").outcome
    assert passed is not None
    assert failed is not None
    assert (passed.status, failed.status, failed.reason) == ("accepted", "unresolved", "no_route")


class Scoring:
    """A scorer without the async side."""

    name = "scoring"

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        return ScoreResult(tuple(None for _ in rollouts), Usage(calls=1))


def test_the_sync_side_runs_in_a_thread_where_there_is_no_other() -> None:
    scorer = adopted(Scorer, Scoring(), where="x")
    assert asyncio.run(scorer.ascore(Step.of("q"), [Rollout("a")])).tables == (None,)
