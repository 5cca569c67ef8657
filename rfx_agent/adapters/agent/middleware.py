"""Recovery as middleware of LangChain's ``create_agent``: one line, and a failed answer is recovered."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, Unpack

from rfx_agent.errors import ConfigError, Unresolved

try:
    from langchain.agents.middleware.types import AgentMiddleware, ModelRequest, ModelResponse
except ImportError as error:
    raise ConfigError("langchain is not installed; install it with: pip install 'rfx-agent[langchain]'") from error

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import PromptValue

from rfx_agent.adapters.agent.answers import (
    Answer,
    in_response,
    open_case,
    response_of,
    retract,
    with_update,
)
from rfx_agent.adapters.agent.person import PersonHooks
from rfx_agent.adapters.agent.state import AgentRun, Purses, RecoverabilityState
from rfx_agent.adapters.agent.structured import Malformed, malformed, schema_of
from rfx_agent.adapters.agent.thing import AgentModel, Parameters, answer_of, ended, fits, rollout_of_response
from rfx_agent.adapters.agent.tools import ToolCheck, ToolHooks, checked_checks
from rfx_agent.adapters.attempts import FAILURES, Again, Attempts, checked_failures
from rfx_agent.adapters.given import (
    AgentOptions,
    OnUnresolved,
    SamplerLike,
    ToolLike,
    VerifierLike,
    checked_unresolved,
    recovery_of,
)
from rfx_agent.adapters.graph.source import streaming
from rfx_agent.adapters.marks import marks_of
from rfx_agent.adapters.shield import Shield
from rfx_agent.adapters.texts import as_text, messages_of, step_of
from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Case
from rfx_agent.checks import among, whole
from rfx_agent.engine.drive import Call, Flow, drive, drive_async
from rfx_agent.engine.nodes import diagnose, judged, recover, start, until_asked
from rfx_agent.engine.run import Run
from rfx_agent.engine.settings import Settings
from rfx_agent.records import SampleRequest, Spend, Step
from rfx_agent.recovery import Recovery

__all__ = ["RecoverabilityMiddleware"]

_ME = "RecoverabilityMiddleware"


class RecoverabilityMiddleware(AgentMiddleware[RecoverabilityState, Any, Any]):
    """Verifies an agent's final answers, and recovers those that fail.

    A response that calls tools is no answer and passes on. A final one (no tool calls, or a structured response, which
    is judged as JSON) goes to the verifier; nothing else makes it a failure, and one that passes costs nothing more.
    After a failure the model is asked again with the same request, which does not grow; the case is diagnosed and
    routed as everywhere else. What comes back is a whole message of a draw (its id and its tokens with it), or one
    made of the text of a tool or a person; ``response_metadata["rfx"]`` says how it came about.

    A draw that calls tools counts as failed. Where nothing else succeeds and no person is asked it is what comes back,
    with outcome ``continued``: the agent goes on and its next answer is judged; with ``per="call"`` it never does,
    because no budget would end that.

    Where the agent has a ``response_format``, a structured response that LangChain cannot parse is a failed answer, and
    the schema's error its feedback; so are several at once and, in an agent without tools, a plain text. LangChain's
    own loop behind one (``handle_errors``, which nothing bounds) is not entered: the thread has no failed call and no
    message about it. What nothing rescues raises ``Unresolved`` from LangChain's error, or, with
    ``on_unresolved="return"``, that error itself, because LangChain would call the model again behind any response.
    A raw JSON schema is not enforced by LangChain; the verifier has to. Nobody is asked by ``interrupts`` where there
    is no response to ask about.

    Any other exception of the first call passes through at once, unless it is one of ``failures``.

    A failed answer of which the verifier says what is wrong is revised: the answer and the feedback stand in that one
    request, never in the thread. In an agent with tools only a malformed structured response is, unless ``remedies``
    lists ``Revise()``, as it was not shown to help. Where the revised draw calls a tool, the feedback is
    dropped.

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

    An agent has one of these: LangChain refuses two of a name. Two verifiers go into one, as ``AllOf`` or ``Cascade``.

    Counts are in the agent's state: ``rfx_run`` since the last message of the user, an interrupt in between included,
    ``rfx_thread`` over the thread. A subagent is a run of its own, with a budget of its own.

    Args:
        recovery: what to verify and spend. Its cap on tokens is that of the tool's input, and its sampler drives the
            tool; draws of the agent are left alone but for what is said here. Or give ``verifier`` and what else
            differs from ``Recovery``'s defaults by name.
        verifier: judges answers.
        sampler: the model that drives ``tool``; by default the agent's own, without its tools.
        tool: what ``tool_verify`` runs.
        budget: caps on recovery, in one run or in one call of the model (``per``).
        prompt: makes the prompt of the step from the model request: text, messages or a whole ``Step``, whose own id
            and ``expected`` go first. It is what the verifier and the tool are shown; the agent's draws have the
            agent's request. By default the request's messages.
        answer: makes the text that the verifier reads from the message that answers, of draws too; the message goes on
            whole. By default its text, and a structured response as JSON.
        expected: makes what the verifier compares with from the model request; no model sees it.
        on_unresolved: whether an answer that nothing rescued raises ``Unresolved``, or comes back with its outcome.
        interrupts: whether a person is asked about it. The question is a node after the model, so that a resume calls
            no model again; it needs a checkpointer.
        per: what one budget is for.
        recovers: per name of a tool a function of (request, message) that says whether its result will do: True,
            False, or why not. One that will not is asked for again, each time for one attempt of the budget, which
            parallel calls share; then the model is told, by a ``ToolMessage`` with status ``error``.
        tool_retries: most further calls of one tool call.
        failures: exceptions of a model call that are failed answers, not an agent out of order.
        step_id: makes the step's name from the model request; by default a digest of its last message.
        temperature: of draws; None for the agent's own.
        max_tokens: most tokens of a draw, set on the model, and of the tool's input; None leaves the draws alone and
            reserves for each what the recovery says, 512 by default.
        takes_temperature: whether the model does; None looks whether it has such a field.
        options: further parameters of ``Recovery``, such as ``remedies``, ``on_event`` or ``policy``.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from rfx_agent.verifiers.text import ExactVerifier
        >>> recovering = RecoverabilityMiddleware(verifier=ExactVerifier("42"))
        >>> agent = create_agent(FakeListChatModel(responses=["41", "42"]), middleware=[recovering])
        >>> agent.invoke({"messages": [("user", "What is 6 times 7?")]})["messages"][-1].text
        '42'
    """

    state_schema = RecoverabilityState
    _settings: Settings
    _purses: Purses
    _per: str
    _on_unresolved: str
    _recovers: Mapping[str, ToolCheck]
    _tool_retries: int

    def __new__(cls, *_: Any, interrupts: bool = False, recovers: Any = None, **__: Any) -> RecoverabilityMiddleware:
        """Choose the class by what is asked for: LangChain adds a node for each hook that a class defines."""
        asked: Any = cls
        made: RecoverabilityMiddleware = super().__new__(_with_hooks(asked, bool(interrupts), bool(recovers)))
        return made

    def __init__(
        self,
        recovery: Recovery | None = None,
        *,
        verifier: VerifierLike | None = None,
        sampler: SamplerLike | None = None,
        tool: ToolLike | None = None,
        budget: RetryBudget | None = None,
        prompt: Callable[[ModelRequest[Any]], Any] | None = None,
        answer: Callable[[AIMessage], str] | None = None,
        expected: Callable[[ModelRequest[Any]], Any] | None = None,
        on_unresolved: OnUnresolved = "raise",
        interrupts: bool = False,
        per: Literal["run", "call"] = "run",
        recovers: Mapping[str, ToolCheck] | None = None,
        tool_retries: int = 2,
        failures: tuple[type[Exception], ...] = FAILURES,
        step_id: Callable[[ModelRequest[Any]], str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        takes_temperature: bool | None = None,
        **options: Unpack[AgentOptions],
    ) -> None:
        super().__init__()
        self.tools = []
        among(f"{_ME}: per", per, ("run", "call"))
        checked_unresolved(_ME, on_unresolved)
        among(f"{_ME}: interrupts", interrupts, (True, False))
        whole(f"{_ME}: tool_retries", tool_retries)
        checked_failures(_ME, failures)
        among(f"{_ME}: takes_temperature", takes_temperature, (None, True, False))
        for name, value, of in (
            ("prompt", prompt, "a function of the model request"),
            ("answer", answer, "a function of the message that answers"),
            ("expected", expected, "a function of the model request; what is always the same goes to the verifier"),
            ("step_id", step_id, "a function of the model request"),
        ):
            if value is not None and not callable(value):
                raise ConfigError(f"{_ME}: {name} is {value!r}; give {of}")
        named = {"verifier": verifier, "sampler": sampler, "tool": tool, "budget": budget}
        made: Recovery = recovery_of(RecoverabilityMiddleware, recovery, named, options)
        draws: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        draws = {name: value for name, value in draws.items() if value is not None}
        self._settings = replace(made, **draws) if draws else made
        if interrupts and made.escalator is not None:
            raise ConfigError(f"{_ME}: interrupts is True and escalator is set; give one way to ask a person")
        self._per, self._on_unresolved, self._interrupts = per, on_unresolved, interrupts
        self._parameters = Parameters(temperature, max_tokens, takes_temperature)
        self._failures = failures
        self._recovers, self._tool_retries = checked_checks(recovers), tool_retries
        self._prompt, self._answer_text, self._expected, self._step_id = prompt, answer, expected, step_id
        self._purses = Purses(self._settings.budget)

    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined]  # what help and an IDE show

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
        """Do what ``wrap_model_call`` does, without blocking the event loop."""
        return await drive_async(self._flow(request, handler))

    def _flow(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> Flow[Answer]:
        agent = AgentRun.of(request.state, request.runtime, self._purses)
        call = self._call(agent, request)
        (reply,) = yield (Call(handler, handler, (request,)),)
        if reply.error is None and ended(reply.value):
            return with_update(reply.value, agent.update())
        reads = partial(malformed, request=request, ends=bool(self._recovers), failures=self._failures)
        flawed = reads(reply.value if reply.error is None else reply.error)
        if reply.error is not None and flawed is None:
            raise reply.error
        first: ModelResponse[Any] | None = None if flawed else reply.value
        if first is not None and answer_of(first) is None:
            return with_update(first, agent.update())
        step, response = self._step(request), flawed or reply.value
        ledger = agent.purse.ledger if self._per == "run" else Ledger(self._settings.budget)
        run = Run.of(self._settings, on_event=streaming(self._settings))
        candidate = rollout_of_response(response, number=1, answer=self._answer_text, prompt=step.messages)
        verdict = None if first is None else (yield from judged(run, step, candidate, ledger))
        if first is not None and verdict is not None and verdict.passed:
            if verdict.let_through(run):
                agent.purse.charge(verdict.spent(run))
            else:  # hooks are told what the engine decides
                case = yield from diagnose(run, (yield from verdict.opened(run)), human=False)
                agent.purse.charge(case.ledger.spent - ledger.spent)
            return with_update(first, agent.update("accepted"))
        s = self._settings
        nominal = SampleRequest(step.messages, temperature=s.temperature, max_tokens=s.max_tokens)
        # In an agent with tools a revision has not been shown to help, so there it has to be asked for; except that
        # LangChain tells of a malformed response by itself.
        revises = s.remedies is not None or not request.tools or flawed is not None
        reading: Any = {"reads": reads, "answer": self._answer_text}
        model = AgentModel(request, handler, s.sampler, self._parameters, nominal, revises=revises, **reading)
        attempts = Attempts(model)
        attempts.first(model.made(response, Again(1)))
        like = None if first is None else first.structured_response
        schema = schema_of(request) if like is not None or flawed else None
        shield = Shield(self._settings.verifier, attempts, fits(like, schema))
        run = replace(run, sampler=attempts, verifier=shield, temperature=model.temperature)
        if verdict is None:
            case = start(run, step, candidate, ledger=ledger)
        else:
            case = yield from verdict.opened(run)
        retract(request, step, response)
        asks = self._interrupts and first is not None
        case = yield from until_asked(run, case, human=True) if asks else recover(run, case)
        agent.purse.charge(spent := case.ledger.spent - ledger.spent)
        return self._answer(case, spent, agent, call, request, model, attempts, first, flawed)

    def _answer(
        self,
        case: Case,
        spent: Spend,
        agent: AgentRun,
        call: tuple[Any, ...],
        request: ModelRequest[Any],
        model: AgentModel,
        attempts: Attempts,
        first: ModelResponse[Any] | None,
        flawed: Malformed | None,
    ) -> Answer:
        """What the recovery of a failed answer gives back to the agent."""
        marks, outcome = marks_of(case, spent), case.outcome
        if outcome is None:  # a person is asked, about a response that there is
            assert first is not None  # noqa: S101
            response = in_response(first, marks)
            return with_update(response, agent.update("asked") | {"rfx_open": open_case(case, response, marks)})
        if outcome.ok:
            response = response_of(outcome, case, attempts, request, first)
            return with_update(in_response(response, marks), agent.update(outcome.status))
        if outcome.status in ("unresolved", "unasked") and model.going_on is not None and self._per == "run":
            going_on = in_response(model.going_on, marks | {"outcome": "continued"})
            return with_update(going_on, agent.update("continued"))
        if self._on_unresolved == "raise":
            agent.purse.gave_up = call
            raise Unresolved(outcome.sentence, case=case) from (None if flawed is None else flawed.error)
        if flawed is not None:  # LangChain would call the model again behind it
            raise flawed.error
        assert first is not None  # noqa: S101  # there is a response, or a flawed one
        return with_update(in_response(first, marks), agent.update(outcome.status))

    def _call(self, run: AgentRun, request: ModelRequest[Any]) -> tuple[Any, ...]:
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
        """The step that is judged: what ``prompt`` makes of the request, or its messages."""
        system = [] if request.system_message is None else [request.system_message]
        given: list[BaseMessage] = [*system, *request.messages]
        if self._step_id is not None:
            step_id = self._step_id(request)
            if not isinstance(step_id, str) or not step_id:
                raise ConfigError(f"{_ME}: step_id returned {step_id!r}; return a text that is not empty")
        else:  # a digest of the whole conversation would cost more with every turn
            last = as_text(given[-1]) if given else ""
            step_id = hashlib.sha256(f"{len(given)}:{last}".encode(errors="replace")).hexdigest()[:12]
        expected = None if self._expected is None else self._expected(request)
        if self._prompt is None:
            messages = tuple(messages_of(given))
            return Step(messages or ({"role": "user", "content": ""},), expected=expected, id=step_id)
        prompt = self._prompt(request)
        if not prompt or not isinstance(prompt, (str, Step, Sequence, BaseMessage, PromptValue)):
            raise ConfigError(f"{_ME}: prompt returned {prompt!r}; return a text, messages or a Step")
        step = step_of(list(prompt) if isinstance(prompt, tuple) else prompt)
        named = isinstance(prompt, Step) and step.id != Step(step.messages).id
        return replace(
            step, id=step.id if named else step_id, expected=expected if step.expected is None else step.expected
        )


@cache
def _with_hooks(cls: Any, interrupts: bool, recovers: bool) -> Any:
    """``cls``, or a class of its own with the hooks that it lacks."""
    wanted = [hooks for hooks, asked in ((PersonHooks, interrupts), (ToolHooks, recovers)) if asked]
    missing = [hooks for hooks in wanted if not issubclass(cls, hooks)]
    return (
        type(cls.__name__, (*missing, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__}) if missing else cls
    )
