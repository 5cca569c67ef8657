"""Recovery as middleware of LangChain's ``create_agent``: one line, and a failed answer is recovered."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

from rfx_agent._errors import ConfigError, Unresolved

try:
    from langchain.agents.middleware.types import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.structured_output import StructuredOutputError
except ImportError as error:
    raise ConfigError("langchain is not installed; install it with: pip install 'rfx-agent[langchain]'") from error

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from rfx_agent._types import Message, Step
from rfx_agent.adapters._agent.answers import (
    Answer,
    in_response,
    marks_of,
    open_case,
    response_of,
    retract,
    schema_of,
    with_update,
)
from rfx_agent.adapters._agent.draws import Draws, Judge, Settings, answer_of, rollout_of_made
from rfx_agent.adapters._agent.person import PersonHooks
from rfx_agent.adapters._agent.state import Purses, RecoverabilityState, Run, less
from rfx_agent.adapters._agent.tools import ToolCheck, ToolHooks, checked_checks
from rfx_agent.adapters._graph.source import streamed
from rfx_agent.adapters._passing import free, unseen
from rfx_agent.budgets import Ledger
from rfx_agent.case import Case
from rfx_agent.engine import (
    Call,
    Flow,
    Recovery,
    diagnose,
    drive,
    drive_async,
    recover,
    resample,
    resumed,
    steer,
    tool_verify,
    verdict_call,
)
from rfx_agent.engine.calls import examine
from rfx_agent.ports import Sampler, Tool, Verifier
from rfx_agent.testing import ScriptedSampler

if TYPE_CHECKING:
    from rfx_agent.budgets import RetryBudget
    from rfx_agent.calibration import Calibration
    from rfx_agent.policies import Policy
    from rfx_agent.ports import Scorer

__all__ = ["RecoverabilityMiddleware"]

_ME = "RecoverabilityMiddleware"
_REMEDIES = {"resample": resample, "tool_verify": tool_verify, "steer": steer}


class RecoverabilityMiddleware(AgentMiddleware[RecoverabilityState, Any, Any]):
    """Verifies an agent's final answers, and recovers those that fail.

        agent = create_agent(model, tools, middleware=[RecoverabilityMiddleware(verifier=...)])

    A response that calls tools is no answer and passes on. A final one (no tool calls, or a structured response, which
    is judged as JSON) goes to the verifier; nothing else makes it a failure, and one that passes costs nothing more.
    After a failure the model is asked again with the same request, which does not grow; the case is diagnosed and
    routed as everywhere else. What comes back is a whole message of a draw (its id and its tokens with it), or one
    made of the text of a tool or a person; ``response_metadata["rfx"]`` says how it came about.

    A draw that calls tools counts as failed. Where nothing else succeeds and no person is asked it is what comes back,
    with outcome ``continued``: the agent goes on and its next answer is judged; with ``per="call"`` it never does,
    because no budget would end that. A structured response that LangChain cannot parse counts as a failed answer too.

    Order (the first in the list is the outermost):

    - ``ModelRetryMiddleware`` and ``ModelFallbackMiddleware`` go after this one, so that each draw has them inside;
      give the first ``on_failure="error"``, or the text of its error is judged as an answer. A retry outside would
      repeat a whole recovery: it is refused with a ``ConfigError``. A fallback outside recovers with the next model,
      under what is left of the budget.
    - What changes the request (tool selection, context editing, prompts) goes before this one, or it is done again
      for each draw. Of middleware inside that returns commands, LangChain keeps those of the draws last made.
    - ``SummarizationMiddleware``, ``HumanInTheLoopMiddleware``, ``ModelCallLimitMiddleware`` and
      ``ToolCallLimitMiddleware`` work in nodes of their own and may stand anywhere. The call limits count answers of
      the agent's model node; draws are capped by ``budget``.

    Streams (``stream_mode="messages"``): the first attempt is seen as it is written, because nobody knows yet that it
    will fail. Once it has, the custom stream says ``{"type": "rfx.retract", "step_id": ..., "message": id}``; further
    attempts are not streamed, and the message that stands arrives whole. The custom stream has the events of the
    recovery too (``rfx_agent.events.as_record``); an answer that passes is in it only where ``on_event`` is set.

    Counts are in the agent's state: ``rfx_run`` since the last message of the user, an interrupt in between included,
    ``rfx_thread`` over the thread. A subagent is a run of its own, with a budget of its own.

    Args:
        verifier: judges answers.
        tool: what ``tool_verify`` runs.
        sampler: the model that drives ``tool``; by default the agent's own, without its tools.
        scorer: gives an ancestor's log-probabilities, for models that report their own.
        policy: decides the routes.
        budget: caps on recovery, in one run or in one call of the model (``per``).
        calibration: the population that features are scored against.
        per: what one budget is for.
        on_unresolved: whether an answer that nothing rescued raises ``Unresolved``, or comes back with its outcome.
        interrupts: whether a person is asked about it. The question is a node after the model, so that a resume calls
            no model again; it needs a checkpointer.
        recovers: per name of a tool a function of (request, message) that says whether its result will do: True,
            False, or why not. One that will not is asked for again, each time for one attempt of the budget, which
            parallel calls share; then the model is told, by a ``ToolMessage`` with status ``error``.
        tool_retries: most further calls of one tool call.
        reference: makes the step's reference, for the verifier only, from the model request.
        step_id: makes the step's name from the model request; by default a digest of its last message.
        temperature: of draws; None for the agent's own. A lifted one is set all the same.
        max_tokens: most tokens of a draw, set on the model; None leaves that alone and reserves 512.
        takes_temperature: whether the model does; None looks whether it has such a field.
        options: further parameters of ``Recovery``.

    Raises:
        ConfigError: a parameter that cannot work.
    """

    state_schema = RecoverabilityState
    _recovery: Recovery
    _purses: Purses
    _per: str
    _on_unresolved: str
    _recovers: Mapping[str, ToolCheck]
    _tool_retries: int

    def __new__(cls, *, interrupts: bool = False, recovers: Any = None, **_: Any) -> RecoverabilityMiddleware:
        """Choose the class by what is asked for: LangChain adds a node for each hook that a class defines."""
        if cls is RecoverabilityMiddleware:
            cls = _CLASSES[bool(interrupts), bool(recovers)]
        return super().__new__(cls)

    def __init__(
        self,
        *,
        verifier: Verifier,
        tool: Tool | None = None,
        sampler: Sampler | None = None,
        scorer: Scorer | None = None,
        policy: Policy | None = None,
        budget: RetryBudget | None = None,
        calibration: Calibration | None = None,
        per: Literal["run", "call"] = "run",
        on_unresolved: Literal["raise", "return"] = "raise",
        interrupts: bool = False,
        recovers: Mapping[str, ToolCheck] | None = None,
        tool_retries: int = 2,
        reference: Callable[[ModelRequest[Any]], Any] | None = None,
        step_id: Callable[[ModelRequest[Any]], str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        takes_temperature: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.tools = []
        _one_of("per", per, ("run", "call"))
        _one_of("on_unresolved", on_unresolved, ("raise", "return"))
        _one_of("interrupts", interrupts, (True, False))
        if isinstance(tool_retries, bool) or not isinstance(tool_retries, int) or tool_retries < 0:
            raise ConfigError(f"{_ME}: tool_retries is {tool_retries!r}; give an integer of at least 0")
        if sampler is not None and (isinstance(sampler, type) or not isinstance(sampler, Sampler)):
            raise ConfigError(f"{_ME}: sampler is {sampler!r}; give an instance with the members of ports.Sampler")
        for name, value in (("reference", reference), ("step_id", step_id)):
            if value is not None and not callable(value):
                raise ConfigError(f"{_ME}: {name} is {value!r}; give a function of the model request")
        known = {f.name for f in fields(Recovery)} - {"sampler"}
        if unknown := sorted(set(options) - known):
            raise ConfigError(f"{_ME}: unknown parameter {unknown[0]!r}; Recovery's are {', '.join(sorted(known))}")
        if interrupts and options.get("escalator") is not None:
            raise ConfigError(f"{_ME}: interrupts is True and escalator is set; give one way to ask a person")
        given = {
            "tool": tool,
            "scorer": scorer,
            "policy": policy,
            "budget": budget,
            "calibration": calibration,
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        options |= {name: value for name, value in given.items() if value is not None}
        recovery = Recovery(sampler=ScriptedSampler([]), verifier=verifier, **options)  # each call has its own sampler
        # Where nobody watches or counts, and a verdict is free, an answer that passes needs no more than the verdict.
        self._lean = free(recovery) and unseen(recovery)
        self._recovery = streamed(recovery)
        self._sampler, self._per, self._on_unresolved, self._interrupts = sampler, per, on_unresolved, interrupts
        self._settings = Settings(temperature, max_tokens, takes_temperature)
        self._recovers, self._tool_retries = checked_checks(recovers), tool_retries
        self._reference, self._step_id = reference, step_id
        self._purses = Purses(self._recovery.budget)

    @property
    def name(self) -> str:
        """What it is called in the agent's graph and in traces."""
        return _ME

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Answer:
        """Call the model, and recover its answer where that fails.

        Raises:
            Unresolved: nothing rescued it; with the whole case.
            VerifierError: the verifier broke.
        """
        return drive(self._flow(request, handler))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Answer:
        """The same on the running event loop."""
        return await drive_async(self._flow(request, handler))

    def _flow(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> Flow[Answer]:
        run = Run.of(request.state, request.runtime, self._purses)
        call = self._call(run, request)
        (reply,) = yield (Call(handler, handler, (request,)),)
        malformed = reply.error if isinstance(reply.error, StructuredOutputError) else None
        if reply.error is not None and malformed is None:
            raise reply.error
        first: ModelResponse[Any] | None = reply.value
        if first is not None and answer_of(first) is None:
            return with_update(first, run.update())
        step, judged = self._step(request), None
        if first is not None and self._lean:
            rollout = rollout_of_made(first, name="r0")
            judged = yield (verdict_call(self._recovery, step, rollout, (rollout,)),)
            if judged[0].error is None and judged[0].value.passed:
                run.purse.charge(self._recovery.spend(judged[0].value.usage, seconds=judged[0].seconds))
                return with_update(first, run.update("accepted"))
        ledger = run.purse.ledger if self._per == "run" else Ledger(self._recovery.budget)
        draws = Draws(request, handler, self._sampler, self._settings, self._recovery.temperature)
        draws.step = step
        case = replace(self._recovery.start(step, draws.take(malformed or reply.value)), ledger=ledger)
        if first is not None:
            case = yield from resumed(examine(self._recovery, case), judged)
        if case.rollouts[0].passed:
            case = yield from diagnose(self._recovery, case, human=False)  # hooks are told what the engine decides
            run.purse.charge(less(case.ledger.spent, ledger.spent))
            return with_update(reply.value, run.update("accepted"))
        retract(request, step, malformed or reply.value)
        like = None if first is None else first.structured_response
        schema = schema_of(request) if like is not None or malformed else None
        judge = Judge(self._recovery.verifier, draws, like, schema)
        bound = self._recovery.with_parts(sampler=draws, verifier=judge, temperature=draws.temperature)
        case = yield from _until_asked(bound, case) if self._interrupts and first else recover(bound, case)
        run.purse.charge(spent := less(case.ledger.spent, ledger.spent))
        marks = marks_of(case, spent)
        if case.outcome is None:
            response = in_response(reply.value, marks)
            return with_update(response, run.update("asked") | {"rfx_open": open_case(case, response, marks)})
        if case.outcome.ok:
            response = response_of(case.outcome, case, draws, request, first)
            return with_update(in_response(response, marks), run.update(case.outcome.status))
        if case.outcome.status in ("unresolved", "unasked") and draws.going_on is not None and self._per == "run":
            return with_update(in_response(draws.going_on, marks | {"outcome": "continued"}), run.update("continued"))
        if self._on_unresolved == "raise":
            run.purse.gave_up = call
            raise Unresolved(case.outcome.sentence, case=case) from malformed
        if malformed is not None:
            raise malformed
        return with_update(in_response(reply.value, marks), run.update(case.outcome.status))

    def _call(self, run: Run, request: ModelRequest[Any]) -> tuple[Any, ...]:
        """What tells this call of the model node from others; refuses what cannot work before anything is spent."""
        info = getattr(request.runtime, "execution_info", None)
        call = (getattr(info, "task_id", None), getattr(info, "node_attempt", None), id(request.model))
        if info is not None and run.purse.gave_up == call:
            raise ConfigError(
                f"{_ME}: a middleware outside it retries an answer that stayed unresolved; put ModelRetryMiddleware "
                "and its like after it in the list of middleware"
            )
        if self._interrupts and info is not None and info.thread_id is None:
            raise ConfigError(
                f"{_ME}: interrupts is True, but the agent keeps no state to resume from; give create_agent a "
                "checkpointer, and a thread_id in the config"
            )
        return call

    def _step(self, request: ModelRequest[Any]) -> Step:
        system = [] if request.system_message is None else [request.system_message]
        given: list[BaseMessage] = [*system, *request.messages]
        messages: tuple[Message, ...] = tuple(dict(m) for m in convert_to_openai_messages(given))
        if not messages:
            messages = ({"role": "user", "content": ""},)
        if self._step_id is not None:
            step_id = self._step_id(request)
        else:  # a digest of the whole conversation would cost more with every turn
            last = given[-1].text if given else ""
            step_id = hashlib.sha256(f"{len(given)}:{last}".encode(errors="replace")).hexdigest()[:12]
        reference = None if self._reference is None else self._reference(request)
        return Step(messages, reference=reference, id=step_id)


class _Asking(PersonHooks, RecoverabilityMiddleware):
    pass


class _Checking(ToolHooks, RecoverabilityMiddleware):
    pass


class _AskingAndChecking(PersonHooks, ToolHooks, RecoverabilityMiddleware):
    pass


_CLASSES: Mapping[tuple[bool, bool], type[RecoverabilityMiddleware]] = {
    (False, False): RecoverabilityMiddleware,
    (True, False): _Asking,
    (False, True): _Checking,
    (True, True): _AskingAndChecking,
}


def _until_asked(r: Recovery, case: Case) -> Flow[Case]:
    """As ``recover``, but a case for a person comes back open: they are asked in a node of its own."""
    while True:
        case = yield from diagnose(r, case, human=True)
        if case.outcome is not None or case.ask is not None:
            return case
        case = yield from _REMEDIES[case.decision.route](r, case)


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{_ME}: {name} is {value!r}; give {' or '.join(map(repr, choices))}")
