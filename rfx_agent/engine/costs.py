"""What things cost: the most that an action can cost before it, and what it did cost after it.

How long a call may take is the matter of its own timeout; a reservation holds a millisecond, so that no call goes out
when no time is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rfx_agent.bill import PlainRetry
from rfx_agent.budgets.step import CAPS, Price
from rfx_agent.case import Case, Diagnosis
from rfx_agent.errors import may_have_worked
from rfx_agent.records import Message, Rollout, Spend, Usage
from rfx_agent.spend import text_tokens

if TYPE_CHECKING:
    from rfx_agent.engine.run import Run

__all__ = [
    "bytes_of",
    "lost_tries",
    "of_candidate",
    "of_completion",
    "of_draw",
    "of_failure",
    "of_scores",
    "of_usage",
    "plain_retry",
    "prompt_tokens",
    "reported",
]

_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_PER_TOKEN = 4  # characters of a token, on average; for estimates that nothing is capped by
_INSTANT = 0.001  # seconds
_DRAWS = 1_000  # draws of a plain retry that has no cap, for its estimate


def of_usage(
    run: Run, usage: Usage, *, samples: int = 0, seconds: float = 0.0, asked: int = 0, price: Price | None = None
) -> Spend:
    """What ``usage`` of a model costs, at the deployment's price unless another is given."""
    price = price or run.settings.price
    return Spend(
        samples=samples,
        tokens=usage.tokens,
        usd=price.usd(usage) if price else 0.0,
        seconds=seconds,
        calls=usage.calls,
        asked=asked,
    )


def reported(error: Exception | None) -> Usage:
    """The usage that an error reports; where it reports none, only the number of requests that were made before it."""
    used = getattr(error, "usage", None)
    return replace(used if isinstance(used, Usage) else Usage(), calls=getattr(error, "calls", 0))


def lost_tries(error: Exception | None) -> int:
    """Requests that brought nothing, and that a server may have worked on: most statuses say that it did not."""
    lost = getattr(error, "lost", None)
    known = reported(error).calls > 0 and may_have_worked(getattr(error, "status", None))
    return max(0, lost) if isinstance(lost, int) else int(known)


def of_failure(run: Run, cost: Spend, error: Exception | None, *, seconds: float, price: Price | None = None) -> Spend:
    """What a call costs that ended in ``error``, and for which ``cost`` was reserved.

    What a lost try cost is not known, unless the error estimates it: all that was reserved counts, except the attempts,
    once for each.
    """
    spent, lost = of_usage(run, reported(error), seconds=seconds, asked=1, price=price), lost_tries(error)
    if not lost:
        return spent
    known = spent if getattr(error, "usage", None) is not None else cost.tried(lost)
    calls, asked = spent.calls, spent.asked
    return replace(cost, attempts=0, tokens=known.tokens, usd=known.usd, seconds=seconds, calls=calls, asked=asked)


def of_completion(run: Run, read: int, *, calls: int = 1, cap: int | None = None, price: Price | None = None) -> Spend:
    """The most that one completion can cost: ``read`` tokens of prompt, and ``cap`` tokens written.

    Args:
        run: the deployment.
        read: tokens of the prompt, at most.
        calls: requests that it may cause.
        cap: tokens written, at most; by default ``Recovery.max_tokens``.
        price: of the model that is asked; by default the deployment's.
    """
    written = run.settings.max_tokens if cap is None else cap
    return of_usage(run, Usage(read, written, calls), samples=1, seconds=_INSTANT, price=price)


def of_draw(run: Run, case: Case, prefix: str = "", *, cap: int | None = None) -> Spend:
    """The most that one draw of the step can cost, with ``prefix`` continued and up to ``cap`` tokens written."""
    calls = run.sampler.max_calls if run.sampler is not None else 1
    return of_completion(run, prompt_tokens(case) + len(prefix.encode(errors="replace")), calls=calls, cap=cap)


def of_scores(run: Run, case: Case, rollouts: Sequence[Rollout]) -> Spend:
    """The most that it can cost to have the ancestor read ``rollouts``. Its tokens are priced as the sampler's."""
    prompt = prompt_tokens(case)
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


def plain_retry(run: Run, case: Case, diagnosis: Diagnosis) -> PlainRetry | None:
    """What an estimate of a plain retry rests on, at the first diagnosis of a failure; None where none can be made.

    A draw is expected to cost what the plain draws so far did in the mean, and a verdict what those so far did.
    """
    bound, posterior = diagnosis.cost.get("retry"), diagnosis.posterior.get("retry")
    if bound is None or posterior is None:
        return None
    counted = [x.usage for x in case.draws("retry") if x.usage.tokens]
    if counted:  # the prompt of a call with several choices is counted on the first of them
        written = sum(x.completion_tokens for x in counted) / len(counted)
        draw = of_usage(run, Usage(max(x.prompt_tokens for x in counted), math.ceil(written)))
    elif case.rollouts:
        draw = of_candidate(run, case)
    else:
        draw = replace(bound, seconds=0.0)
    judged = max(1, sum(x.verdict is not None for x in case.rollouts))
    verdicts = sum((x.spent for x in case.operations if x.purpose == "verify"), Spend())
    usage = Spend(tokens=math.ceil(verdicts.tokens / judged), usd=verdicts.usd / judged)
    each = Spend(attempts=1, samples=1, tokens=draw.tokens, usd=draw.usd, calls=1) + usage
    most = _DRAWS
    for cap in CAPS:  # the most that a draw can cost is reserved for it, and what it does cost is spent
        left, need, cost = case.ledger.remaining()[cap], getattr(bound, cap), getattr(each, cap)
        if left is None or need <= 0:
            continue
        room = left - need + 1e-9
        most = 0 if room < 0 else min(most, 1 + int(room // cost)) if cost > 0 else most
    return PlainRetry(posterior, each, most, after=len(case.operations))


def prompt_tokens(case: Case) -> int:
    """At most so many tokens are read for the step's prompt: the server's own count, as soon as there is one."""
    known = max((x.usage.prompt_tokens for x in case.rollouts if x.remedy == "retry"), default=0)
    most = bytes_of(case.step.messages)
    # No less than what a try that is lost is charged, whose prompt is estimated.
    return max(known, text_tokens(most)) if known else most


def bytes_of(messages: Sequence[Message]) -> int:
    """At most so many tokens are read for ``messages``: a token is at least one byte."""
    return _TEMPLATE * len(messages) + sum(len(str(m.get("content", "")).encode(errors="replace")) for m in messages)
