"""A remedy of the user's own: what to ask, or what to try, given a step and the answers that failed."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rfx_agent.accepted import SamplerLike, sampler_of
from rfx_agent.budgets.step import Price
from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import ConfigError
from rfx_agent.events import ToolRan
from rfx_agent.ports import Remedy, Sampler
from rfx_agent.records import Message, Rollout, SampleRequest, Spend, Step, ToolResult
from rfx_agent.remedies.base import NO_MODEL, asking, candidates, seed_of

__all__ = ["Custom"]


class Custom(Remedy, ABC):
    """Derive from it, give it a ``name``, and write one of two methods.

    ``messages`` asks a model: the recovery's own, or ``sampler`` at ``price``. ``candidate`` gives an answer without
    one, such as a look-up. What comes of either is judged like every other answer, and paid for under the budget.

    Attributes:
        name: of the remedy, ``[a-z0-9_]+``; also the name of its node in the graph.
        sampler: another model than the recovery's, or None; a LangChain chat model or its name will do.
        price: of its tokens.
        seconds: most seconds of ``candidate``, within what the budget has left of ``tool_seconds``. A thread that goes
            on after that is left to itself.

    Example:
        >>> class Hint(Custom):
        ...     name = "hint"
        ...     def messages(self, step, failed):
        ...         return (*step.messages, {"role": "user", "content": "Count the letters one by one."})
        >>> Hint().messages(Step.of("How many r's?"), ())[-1]["content"]
        'Count the letters one by one.'
    """

    sampler: SamplerLike | None = None
    price: Price | None = None
    seconds: float = 10.0

    def available(self, step: Step, failed: Sequence[Rollout]) -> str:
        """Why it can do nothing for this failure; "" where it can, the default. Pure, and quick: asked often.

        Args:
            step: the step.
            failed: the rollouts that failed, oldest first, with ``kind`` and ``verdict``.
        """
        return ""

    def messages(self, step: Step, failed: Sequence[Rollout]) -> Sequence[Message] | None:
        """What to ask the model, in OpenAI's chat format. Pure: it is asked for the price too."""
        return None

    def candidate(self, step: Step, failed: Sequence[Rollout]) -> str | None:
        """An answer, or None where it has none. May be a coroutine function; a plain one runs in a thread where the
        deployment is async. One that gave no answer is not asked again about the same failure."""
        raise NotImplementedError

    @property
    def elsewhere(self) -> bool:  # type: ignore[override]  # of a user's own it depends on what it asks
        """See ``Remedy``."""
        return self._looks_up or self.sampler is not None

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        try:
            if why := self.available(case.step, case.failed):
                return str(why)
            if not self._looks_up:
                asked = self._request(run, case)
                return asked if isinstance(asked, str) else asked[-1] + Spend(attempts=1)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's own code; the others may still help
            return f"{type(error).__name__}: {error}"[:300]
        if any(x.remedy == self.name and not x.got for x in case.attempts):
            return "it had no answer"
        return self._fee(case)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        if self._looks_up:
            return (yield from self._looked_up(run, case))
        asked = self._request(run, case)
        if isinstance(asked, str):
            return case.add((), Attempt(self.name, note=asked))
        model, request, each = asked
        told = asking(model, request, each, price=self._price, blocks=False, elsewhere=self.elsewhere)
        return (yield from candidates(run, case, self.name, 1, told))

    @property
    def _looks_up(self) -> bool:
        return type(self).candidate is not Custom.candidate

    @property
    def _price(self) -> Price | None:
        return None if self.sampler is None else self.price

    @cached_property
    def _accepted(self) -> Sampler:
        """``sampler`` as one, where it is a chat model or its name."""
        return sampler_of(self.sampler, where=f"remedy {self.name}: sampler")

    def _request(self, run: Run, case: Case) -> tuple[Sampler, SampleRequest, Spend] | str:
        """Which model is asked what, and the most that it costs; or why it is not asked."""
        model, own = run.sampler, self.sampler is None
        if self.sampler is not None:
            model = self.sampler if isinstance(self.sampler, Sampler) else self._accepted
        if model is None:
            return NO_MODEL
        if own and not model.takes_revision:
            return f"{model.name} cannot be asked anything but its own prompt"
        given = self.messages(case.step, case.failed)
        if given is None:
            return "it asks nothing here"
        messages = tuple(given)
        if not messages or not all(isinstance(m, Mapping) and "role" in m for m in messages):
            raise ConfigError(f"remedy {self.name}: messages gave {given!r}; give a list of chat messages, or None")
        request = SampleRequest(
            messages,
            temperature=run.temperature,
            max_tokens=run.settings.max_tokens,
            seed=seed_of(run, case),
            revision=_behind(case.step, messages) if own else None,
        )
        if own and request.revision is None and messages != case.step.messages and model.runs_again:
            return f"{model.name} can be told more, and not something else"
        each = costs.of_completion(run, costs.bytes_of(messages), calls=model.max_calls, price=self._price)
        return model, request, each

    def _looked_up(self, run: Run, case: Case) -> Flow[Case]:
        def price(replies: tuple[Reply, ...]) -> Spend:
            return Spend(attempts=1, seconds=replies[0].seconds, tool_seconds=replies[0].seconds)

        def tell(replies: tuple[Reply, ...]) -> list[ToolRan]:
            (reply,) = replies
            failed = reply.error is not None or reply.value.answer is None
            return [ToolRan(case.step.id, self.name, failed, reply.seconds, self.name, run_id=case.run_id)]

        def look() -> ToolResult:
            found: Any = self.candidate(case.step, case.failed)
            return _result(asyncio.run(found) if inspect.iscoroutine(found) else found)

        async def alook() -> ToolResult:
            if inspect.iscoroutinefunction(self.candidate):
                return _result(await self.candidate(case.step, case.failed))
            return await asyncio.to_thread(look)

        cost = self._fee(case)
        limit = min(x for x in (cost.tool_seconds, case.ledger.remaining()["seconds"]) if x is not None)
        about = (self.name, [x.text for x in case.failed])
        case, paid = yield from run.pay(
            case,
            Purchase(
                purpose="tool",
                cost=cost,
                calls=(Call(look, alook, (), limit=limit),),
                about=about,
                gives=ToolResult,
                price=price,
                tell=tell,
                remedy=self.name,
                attempt=len(case.attempts) + 1,
            ),
        )
        if paid.refused:
            return case.add((), Attempt(self.name, note=paid.why))
        (reply,) = paid.replies
        if reply.error is not None:
            note = f"remedy {self.name}: {type(reply.error).__name__}: {reply.error}"
            return case.note(note).add((), Attempt(self.name, misses=1, note=note[:300]))
        answer = reply.value.answer
        made = () if answer is None else (Rollout(answer, remedy=self.name),)
        return case.add(made, Attempt(self.name, 1, len(made), misses=int(not made)))

    def _fee(self, case: Case) -> Spend:
        left = case.ledger.remaining()["tool_seconds"]
        return Spend(attempts=1, seconds=0.001, tool_seconds=self.seconds if left is None else min(self.seconds, left))


def _result(found: object) -> ToolResult:
    return ToolResult(None if found is None else str(found))


def _behind(step: Step, messages: tuple[Message, ...]) -> str | None:
    """What ``messages`` say behind the step's own, as text, for a chain, a node or an agent that is run again; None
    where they are not the step's own with more text behind them."""
    own = step.messages
    if messages[: len(own)] == own:
        texts = [m.get("content") for m in messages[len(own) :]]
        return "\n\n".join(map(str, texts)) or None if all(isinstance(x, str) for x in texts) else None
    *before, last = messages
    said, more = own[-1].get("content"), last.get("content")
    if tuple(before) == own[:-1] and isinstance(said, str) and isinstance(more, str) and more.startswith(said):
        return more[len(said) :].strip() or None
    return None
