"""A tool that the model drives from the original prompt, such as a program in the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rfx_agent import ports
from rfx_agent.accepted import ToolLike, tool_of
from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply, TimedOut
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import ToolError, ToolInputError
from rfx_agent.events import ToolRan
from rfx_agent.records import Message, Rollout, SampleRequest, Spend, ToolResult
from rfx_agent.remedies.base import NO_MODEL, ask_model, asking, before_junction, seed_of
from rfx_agent.thinking import after_thinking

__all__ = ["Tool"]

_GRACE = 1.0  # seconds that a tool may take to stop its own run
_LONGEST = 200_000  # characters of a reply in which a tool's input is looked for


@dataclass(frozen=True)
class Tool(ports.Remedy):
    """The model drives a tool from the original prompt; the tool's result is a candidate like any other.

    An input that fails is shown to the model once, with its error. No failed answer is ever shown. The attempt's note
    says what ran it.

    Attributes:
        tool: a program's sandbox, a LangChain tool, or any ``rfx_agent.ports.Tool``.
    """

    tool: ports.Tool
    name: str = field(default="tool", init=False)
    node: str = field(default="tool_verify", init=False)
    words: str = field(default="a check with the tool", init=False)

    if TYPE_CHECKING:  # what may be given; the field holds what was made of it

        def __init__(self, tool: ToolLike) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool", tool_of(self.tool, where="Tool: tool"))

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        if run.sampler is None or not run.sampler.drives_tools:
            return NO_MODEL
        ask = costs.of_completion(run, costs.bytes_of(self.tool.prompt(case.step)), calls=run.sampler.max_calls)
        run_once: Spend = self.tool.bound
        return ask + run_once + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        tool, before = self.tool, case.ledger.spent.tokens
        prefix = before_junction(case) or None if case.decision.from_junction else None
        messages = tool.prompt(case.step, prefix=prefix)
        result, ran = ToolResult(None), False
        for turn in range(2):
            case, text = yield from self._ask(run, case, messages, Spend(attempts=1 - turn))
            if text is None:  # the model could not be asked, or asking again cannot be paid for
                break
            case, source, result = yield from _run_tool(run, case, tool, text)
            ran = ran or bool(result.seconds or result.answer is not None)
            if result.answer is not None:
                break
            messages = tool.repair(case.step, source, result)
        made = () if result.answer is None else (Rollout(text=result.answer, remedy=self.name),)
        failed = result.error is not None and not made
        cost = case.ledger.spent.tokens - before
        note = "; ".join(x for x in ((result.error or "")[:300], tool.ran(result) if ran else "") if x)
        return case.add(made, Attempt(self.name, 1, len(made), misses=int(failed), tokens=cost, note=note))

    def _ask(
        self, run: Run, case: Case, messages: tuple[Message, ...], attempt: Spend
    ) -> Flow[tuple[Case, str | None]]:
        """The model's text for the tool's input, or None when it cannot be asked or paid for with the run to follow."""
        settings, sampler = run.settings, run.sampler
        if sampler is None:
            return case, None
        each = costs.of_completion(run, costs.bytes_of(messages), calls=sampler.max_calls) + attempt
        if run.short(case, "sample", each + self.tool.bound):
            return case, None
        heat, seed = settings.tool_temperature, seed_of(run, case)
        request = SampleRequest(messages, 1, heat, settings.max_tokens, seed, want_logprobs=False, purpose="tool_input")
        case, rollouts, _ = yield from ask_model(run, case, self.name, 1, asking(sampler, request, each))
        return case, rollouts[0].text if rollouts else None


def _run_tool(run: Run, case: Case, tool: ports.Tool, text: str) -> Flow[tuple[Case, str, ToolResult]]:
    """Run what the model wrote. Its failure is a result; ``ToolError`` ends in a result too, and a note.

    A run is cancelled one second after the tool's bound.
    """
    if len(text) > _LONGEST:
        long = f"the reply has {len(text):,} characters; at most {_LONGEST:,} are read"
        return case, text[:_LONGEST], ToolResult(None, error=long)
    try:
        source = tool.parse(text)
    except ToolInputError as unreadable:
        return case, after_thinking(text).text, ToolResult(None, error=str(unreadable))

    def price(replies: tuple[Reply, ...]) -> Spend:
        return Spend(seconds=replies[0].seconds, tool_seconds=replies[0].seconds)

    def read(reply: Reply) -> ToolResult:
        error = reply.error
        if error is None:
            return reply.value  # type: ignore[no-any-return]  # what a tool gives
        if not isinstance(error, (ToolError, TimedOut)):
            raise ToolError(f"{tool.name}: {type(error).__name__}: {error}") from error
        return ToolResult(None, error=f"{tool.name}: {error}" if isinstance(error, TimedOut) else str(error))

    def tell(replies: tuple[Reply, ...]) -> list[ToolRan]:
        failed = read(replies[0]).answer is None
        return [ToolRan(case.step.id, tool.name, failed, replies[0].seconds, run_id=case.run_id)]

    most = tool.bound.tool_seconds
    call = Call(tool.run, tool.arun, (source,), limit=most + _GRACE if most else None)
    about = (tool.name, source)
    case, paid = yield from run.pay(
        case,
        Purchase(
            purpose="tool",
            cost=tool.bound,
            calls=(call,),
            about=about,
            gives=ToolResult,
            price=price,
            tell=tell,
            remedy="tool",
            attempt=len(case.attempts) + 1,
        ),
    )
    if paid.refused:
        why = paid.why if paid.shared else "the budget cannot pay for a run of the tool"
        return case, source, ToolResult(None, error=why)
    result = read(paid.replies[0])
    return (case.note(result.error or "") if paid.replies[0].error is not None else case), source, result
