"""What things cost: the most that an action can cost before it, and what it did cost after it.

How long a call may take is the matter of its own timeout; a reservation holds a millisecond, so that no call goes out
when no time is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rfx_agent.case import Case
from rfx_agent.records import Message, Rollout, Spend, Usage

if TYPE_CHECKING:
    from rfx_agent.engine.run import Run

__all__ = ["of_candidate", "of_draw", "of_prompt", "of_scores", "of_steering", "of_usage", "per_remedy", "reported"]

_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_PER_TOKEN = 4  # characters of a token, on average; for estimates that nothing is capped by
_INSTANT = 0.001  # seconds


def of_usage(run: Run, usage: Usage, *, samples: int = 0, seconds: float = 0.0, asked: int = 0) -> Spend:
    """What ``usage`` of the sampler's model costs."""
    price = run.settings.price
    return Spend(
        samples=samples,
        tokens=usage.tokens,
        usd=price.usd(usage) if price else 0.0,
        seconds=seconds,
        calls=usage.calls,
        asked=asked,
    )


def reported(error: Exception | None) -> Usage:
    """What an error says of the requests that were made before it."""
    return Usage(calls=getattr(error, "calls", 0))


def of_prompt(run: Run, messages: Sequence[Message], *, calls: int = 1) -> Spend:
    """The most that one completion of ``messages`` can cost. A token is at least one byte, so bytes bound tokens."""
    return _completion(run, _bytes(messages), calls)


def of_draw(run: Run, case: Case, prefix: str = "") -> Spend:
    """The most that one draw of the step can cost, with ``prefix`` continued."""
    calls = run.sampler.max_calls if run.sampler is not None else 1
    return _completion(run, _step_tokens(case) + len(prefix.encode()), calls)


def of_steering(run: Run, case: Case, draw: Rollout) -> Spend:
    """The most that it can cost to steer ``draw`` once. Each of the two models reads it at most twice: once to find the
    junction, once up to where it is kept. Their tokens are priced as the sampler's."""
    read = 4 * (_step_tokens(case) + len(draw.text.encode(errors="replace")))
    calls = run.settings.steerer.max_calls if run.settings.steerer is not None else 1
    return _completion(run, read, calls)


def of_scores(run: Run, case: Case, rollouts: Sequence[Rollout]) -> Spend:
    """The most that it can cost to have the ancestor read ``rollouts``. Its tokens are priced as the sampler's."""
    prompt = _step_tokens(case)
    read = sum(prompt + len(x.text.encode(errors="replace")) for x in rollouts)
    each = run.settings.scorer.max_calls if run.settings.scorer is not None else 1
    return of_usage(run, Usage(read, 0, len(rollouts) * each), seconds=_INSTANT)


def of_candidate(run: Run, case: Case) -> Spend:
    """What the candidate of ``case`` is as normal traffic; its tokens are estimated where nobody counted them."""
    usage = case.rollouts[0].usage
    if not usage.tokens:
        prompt = sum(len(str(m.get("content", ""))) for m in case.step.messages)
        usage = Usage(prompt // _PER_TOKEN, len(case.rollouts[0].text) // _PER_TOKEN)
    return of_usage(run, usage) + Spend(attempts=1)


def per_remedy(run: Run, case: Case) -> Mapping[str, Spend]:
    """Per remedy that can be carried out, the most that one attempt can cost."""
    settings, costs = run.settings, dict[str, Spend]()
    attempt = Spend(attempts=1)
    if run.sampler is not None:
        costs["retry"] = of_draw(run, case) + attempt
        if run.sampler.takes_temperature:
            costs["local_temp"] = costs["retry"]
    longest = max((x for x in case.draws() if not x.passed), key=lambda x: len(x.text), default=None)
    if settings.steerer is not None and longest is not None:
        costs |= dict.fromkeys(settings.steerer.operators, of_steering(run, case, longest) + attempt)
    if settings.tool is not None and run.sampler is not None:
        ask = of_prompt(run, settings.tool.prompt(case.step), calls=run.sampler.max_calls)
        costs["tool"] = ask + settings.tool.bound + attempt
    return costs


def _completion(run: Run, read: int, calls: int) -> Spend:
    return of_usage(run, Usage(read, run.settings.max_tokens, calls), samples=1, seconds=_INSTANT)


def _step_tokens(case: Case) -> int:
    """At most so many tokens are read for the step's prompt: the server's own count, as soon as there is one."""
    known = max((x.usage.prompt_tokens for x in case.rollouts if x.remedy == "retry"), default=0)
    return known or _bytes(case.step.messages)


def _bytes(messages: Sequence[Message]) -> int:
    return _TEMPLATE * len(messages) + sum(len(str(m.get("content", "")).encode()) for m in messages)
