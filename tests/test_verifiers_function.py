"""The user's own function as a verifier."""

from __future__ import annotations

import asyncio
import functools
import threading

import numpy as np
import pytest
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent.errors import ConfigError, VerifierError
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers import FunctionVerifier

STEP = Step.of("?", expected="42")


def by_text(text):
    return "42" in text


def by_step(step, rollout):
    return step.expected in rollout.text


async def by_text_async(text):
    await asyncio.sleep(0)
    return "42" in text


async def by_step_async(step, rollout, strict=False):
    return step.expected in rollout.text


class Callable:
    def __call__(self, text):
        return "42" in text


class AsyncCallable:
    async def __call__(self, step, rollout):
        return "42" in rollout.text


class Method:
    def check(self, text):
        return "42" in text


@pytest.mark.parametrize(
    "fn",
    [
        by_text,
        by_step,
        by_text_async,
        by_step_async,
        Callable(),
        AsyncCallable(),
        Method().check,
        functools.partial(by_step_async, strict=True),
        lambda text, tolerance=0: "42" in text,  # what has a default does not count
        lambda *args: "42" in args[1].text,
        lambda text: np.bool_("42" in text),
        lambda text: Verdict("42" in text, answer="mine", score=0.7),
    ],
)
def test_conformance(fn):
    check_verifier(FunctionVerifier(fn), STEP, passing="Answer: 42", failing="Answer: 41")


def test_verdicts():
    assert FunctionVerifier(by_text).verify(STEP, Rollout("Answer: 42.0")) == Verdict(
        True, answer="42", reason="accepted by by_text"
    )
    mine = Verdict(True, answer="x", score=0.7, reason="why")
    assert FunctionVerifier(lambda text: mine).verify(STEP, Rollout("")) is mine
    weak = FunctionVerifier(lambda text: mine, weak=True).verify(STEP, Rollout(""))
    assert weak == Verdict(True, answer="x", score=0.7, reason="why", weak=True)
    assert FunctionVerifier(by_text, weak=True).verify(STEP, Rollout("42")).weak
    assert FunctionVerifier(by_text, name="check").name == "check"
    assert FunctionVerifier(Callable()).name == "Callable"


@pytest.mark.parametrize("value", [None, 1, 0.5, "yes", [], float("nan")])
def test_anything_else_is_a_broken_verifier(value):
    rollout = Rollout("x")
    for judge in (FunctionVerifier(lambda text: value).verify, _asynchronously(FunctionVerifier(lambda text: value))):
        with pytest.raises(VerifierError, match="return a bool or a Verdict") as raised:
            judge(STEP, rollout)
        assert raised.value.rollout is rollout


def _asynchronously(verifier):
    return lambda step, rollout: asyncio.run(verifier.averify(step, rollout))


def test_exceptions_pass_through():
    def broken(text):
        raise KeyError("mine")

    async def broken_async(text):
        raise KeyError("mine")

    for fn in (broken, broken_async):
        with pytest.raises(KeyError):
            FunctionVerifier(fn).verify(STEP, Rollout("x"))
        with pytest.raises(KeyError):
            asyncio.run(FunctionVerifier(fn).averify(STEP, Rollout("x")))


def test_coroutine_under_a_sync_driver_within_a_running_loop():
    async def notebook_cell():
        return FunctionVerifier(by_text_async).verify(STEP, Rollout("42"))

    assert asyncio.run(notebook_cell()).passed

    async def broken(text):
        raise KeyError("mine")

    async def another_cell():
        return FunctionVerifier(broken).verify(STEP, Rollout("42"))

    with pytest.raises(KeyError):
        asyncio.run(another_cell())


def test_plain_function_under_an_async_driver_runs_in_a_thread():
    threads = []
    verifier = FunctionVerifier(lambda text: bool(threads.append(threading.get_ident())) or True)
    assert asyncio.run(verifier.averify(STEP, Rollout("x"))).passed
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text(hostile):
    check_hostile(FunctionVerifier(by_text), STEP, HOSTILE[hostile])


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        ("no function", "give a function"),
        (lambda: True, "takes 0 positional"),
        (lambda a, b, c: True, "takes 3 positional"),
        (lambda text, *, model: True, r"needs the keywords \['model'\]"),
    ],
)
def test_settings_fail_at_once(fn, told):
    with pytest.raises(ConfigError, match=told):
        FunctionVerifier(fn)


def test_empty_name():
    with pytest.raises(ConfigError, match="name is ''"):
        FunctionVerifier(by_text, name="")
