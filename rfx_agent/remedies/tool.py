"""A tool that the model drives from the original prompt, such as a program in the sandbox."""

from __future__ import annotations

from rfx_agent.case import Attempt, Case
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Call, Flow, Reply, TimedOut
from rfx_agent.engine.run import Purchase, Run
from rfx_agent.errors import ToolError, ToolInputError
from rfx_agent.events import ToolRan
from rfx_agent.records import Message, Rollout, SampleRequest, Spend, ToolResult
from rfx_agent.remedies.base import ask_model, before_junction, seed_of

__all__ = ["tool_verify"]

_GRACE = 1.0  # seconds that a tool may take to stop its own run


def tool_verify(run: Run, case: Case) -> Flow[Case]:
    """Let the model drive the tool from the original prompt, and take its result for a candidate like any other.

    An input that fails is shown to the model once, with its error. No failed answer is ever shown.
    """
    tool = run.settings.tool
    if tool is None or run.sampler is None:
        return case.add((), Attempt("tool", note="there is no tool, or no model to drive it"))
    before = case.ledger.spent.tokens
    prefix = before_junction(case) or None if case.decision.from_junction else None
    messages = tool.prompt(case.step, prefix=prefix)
    result = ToolResult(None)
    for turn in range(2):
        case, text = yield from _ask_tool(run, case, messages, Spend(attempts=1 - turn))
        if text is None:  # the model could not be asked, or asking again cannot be paid for
            break
        case, source, result = yield from _run_tool(run, case, text)
        if result.answer is not None:
            break
        messages = tool.repair(case.step, source, result)
    made = () if result.answer is None else (Rollout(text=result.answer, remedy="tool"),)
    failed = result.error is not None and not made
    cost, note = case.ledger.spent.tokens - before, (result.error or "")[:300]
    return case.add(made, Attempt("tool", 1, len(made), misses=int(failed), tokens=cost, note=note))


def _ask_tool(run: Run, case: Case, messages: tuple[Message, ...], attempt: Spend) -> Flow[tuple[Case, str | None]]:
    """The model's text for the tool's input, or None when it cannot be asked or paid for with the run to follow."""
    settings, sampler = run.settings, run.sampler
    assert settings.tool is not None and sampler is not None  # noqa: S101, PT018  # tool_verify has looked
    each = costs.of_prompt(run, messages, calls=sampler.max_calls) + attempt
    if run.short(case, "sample", each + settings.tool.bound):
        return case, None
    request = SampleRequest(
        messages,
        1,
        settings.tool_temperature,
        settings.max_tokens,
        seed_of(run, case),
        want_logprobs=False,
        purpose="tool_input",
    )
    call = Call(sampler.sample, sampler.asample, (request,))
    case, rollouts, _ = yield from ask_model(run, case, call, "tool", each, 1, model=sampler.name)
    return case, rollouts[0].text if rollouts else None


def _run_tool(run: Run, case: Case, text: str) -> Flow[tuple[Case, str, ToolResult]]:
    """Run what the model wrote. Its failure is a result; ``ToolError`` ends in a result too, and a note.

    A run is cancelled one second after the tool's bound.
    """
    tool = run.settings.tool
    assert tool is not None  # noqa: S101  # tool_verify has looked
    try:
        source = tool.parse(text)
    except ToolInputError as unreadable:
        return case, text, ToolResult(None, error=str(unreadable))

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
        Purchase(purpose="tool", cost=tool.bound, calls=(call,), about=about, gives=ToolResult, price=price, tell=tell),
    )
    if paid.refused:
        why = paid.why if paid.shared else "the budget cannot pay for a run of the tool"
        return case, source, ToolResult(None, error=why)
    result = read(paid.replies[0])
    return (case.note(result.error or "") if paid.replies[0].error is not None else case), source, result
