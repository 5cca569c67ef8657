"""Ours: ``Recovery`` under a ``SharedBudget``, on the store that the plan names.

A call is a recovery of one draw: the candidate is wrong, so a draw is bought, which is reserved, made, settled and
recorded. ``Recovery`` does not stream.
"""

from __future__ import annotations

import re
from typing import Any

from asks import Asks
from rfx_shared import shared_budget
from worker import Peer, Refused, main

from rfx_agent import OpenAISampler, Price, Recovery, RetryBudget, Step
from rfx_agent.policies import FixedPolicy

WRONG = "no"


async def opened(plan: dict[str, Any]) -> Peer:
    """The recovery, and what is asked of it."""
    shared, spent = shared_budget(plan)
    recovery = Recovery(
        OpenAISampler("m", base_url=plan["base_url"], api_key="none", top_logprobs=None),
        lambda text: text != WRONG,
        policy=FixedPolicy(("retry",)),
        budget=RetryBudget(samples=1, attempts=1),
        price=Price(prompt=1.0, completion=4.0),
        max_tokens=plan["max_tokens"],
        shared=shared,
    )
    asks = Asks(plan)

    def step(prompt: str) -> tuple[Step, str]:
        run, number = re.findall(r"run (\S+) call (\d+)", prompt)[0]
        return Step.of(prompt), f"{plan['key']}/{run}/{number}"

    def text_of(case: Any) -> str:
        outcome = case.outcome
        if outcome.reason.startswith("budget:global"):
            raise Refused
        if not outcome.ok:
            raise RuntimeError(f"{outcome.status} {outcome.reason} {case.blocked}")
        return str(outcome.text)

    async def acall(prompt: str, _: bool) -> str:
        asked, run = step(prompt)
        return text_of(await recovery.arun(asked, WRONG, run_id=run))

    def call(prompt: str, _: bool) -> str:
        asked, run = step(prompt)
        return text_of(recovery.run(asked, WRONG, run_id=run))

    async def bare(prompt: str, leave: bool) -> str:
        return (await asks.aask(prompt, leave))[0]

    return Peer(acall=acall, call=call, bare=bare, spent=spent)


if __name__ == "__main__":
    main(opened)
