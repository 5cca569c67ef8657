"""The agent's own model call as a sampler: a draw is one more run of everything inside the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import AIMessage

from rfx_agent._errors import RfxError, SamplerError, is_control_flow
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Step, Usage, Verdict
from rfx_agent.adapters._messages import attempt_context, restored, rollout_of
from rfx_agent.adapters._texts import as_text
from rfx_agent.adapters.langchain import ChatModelSampler
from rfx_agent.ports import Sampler, Verifier

__all__ = ["Draws", "Judge", "Made", "Settings", "answer_of", "rollout_of_made"]

Made: TypeAlias = ModelResponse[Any] | StructuredOutputError


@dataclass(frozen=True, slots=True)
class Settings:
    """Which parameters of a draw differ from the agent's own.

    Attributes:
        temperature: the user's, or None for the agent's own; a lifted one is set all the same.
        max_tokens: the user's, or None for the agent's own.
        takes_temperature: whether the model does; None looks whether it has such a field.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    takes_temperature: bool | None = None


def answer_of(response: ModelResponse[Any]) -> AIMessage | None:
    """The message that answers, or None where the agent goes on: it calls tools, and gives no structured response."""
    message = _said(response)
    if message is None or (message.tool_calls and response.structured_response is None):
        return None
    return message


def rollout_of_made(made: Made, number: int = 0, temperature: float | None = None, *, name: str = "") -> Rollout:
    """What the model made as a rollout, whose response id is its message's or else says its ``number``."""
    message = made.ai_message if isinstance(made, StructuredOutputError) else _said(made)
    assert message is not None  # noqa: S101  # a model call gives a message
    rollout = rollout_of(message, temperature, message.id or f"draw:{number}", name=name)
    if isinstance(made, ModelResponse) and made.structured_response is not None:
        # The tokens spell the model's own text, and no place in this one.
        return replace(rollout, text=as_text(made.structured_response), tokens=None)
    return rollout


class Draws:
    """Draws by calling the agent's model again with the same request, through the middleware inside; other prompts
    go to the model that drives the tool.

    Sync draws run one after the other, because other middleware need not be safe to call from several threads;
    async draws run concurrently.

    Attributes:
        temperature: the agent's own as far as it is known, else ``nominal``.
        responses: what the model gave, by response id; copies of one response are one.
        going_on: the first draw that calls tools instead of answering, or None.
    """

    continues_prefix = False

    def __init__(
        self,
        request: ModelRequest[Any],
        handler: Callable[..., Any],
        asked: Sampler | None,
        settings: Settings,
        nominal: float,
    ) -> None:
        self._request, self._handler, self._asked, self._settings = request, handler, asked, settings
        model = request.model
        declared = getattr(type(model), "model_fields", {})
        self.name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__)
        takes = settings.takes_temperature
        self.takes_temperature = "temperature" in declared if takes is None else takes
        self._driving = tuple(name for name in ("temperature", "max_tokens") if name in declared)
        own = request.model_settings.get("temperature", getattr(model, "temperature", None))
        known = own if isinstance(own, (int, float)) and own >= 0 else nominal
        self.temperature = known if settings.temperature is None else settings.temperature
        self.step: Step | None = None
        self.responses: dict[str, ModelResponse[Any]] = {}
        self.flaws: dict[str, str] = {}
        self.going_on: ModelResponse[Any] | None = None
        self._made = 0

    def take(self, made: Made, temperature: float | None = None) -> Rollout:
        """``made`` as a rollout, kept under its response id. What is no answer is kept with the reason."""
        rollout = rollout_of_made(made, self._made, temperature)
        key = rollout.response_id or ""
        self._made += 1
        if isinstance(made, StructuredOutputError):
            self.flaws.setdefault(key, f"it is no structured response: {made}")
        elif answer_of(made) is None:
            self.flaws.setdefault(key, "it calls tools, and is no answer")
            self.going_on = self.going_on or made
        else:
            self.responses.setdefault(key, made)
        return rollout

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` responses, or ask the tool's model."""
        if self._for_tool(request):
            with self._tagged() as context:
                return context.run(self._driver().sample, request)
        made = []
        for i in range(request.n):
            with self._tagged(i) as context:
                made.append(context.run(self._draw, self._as(request, i)))
        return self._result(request, made)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same, concurrently and without blocking the event loop."""
        if self._for_tool(request):
            with self._tagged() as context:
                return await asyncio.create_task(_only(self._driver().asample(request)), context=context)
        tasks = []
        for i in range(request.n):
            with self._tagged(i) as context:
                config_context = context.copy()  # the manager takes its config back when the block ends
            tasks.append(asyncio.create_task(self._adraw(self._as(request, i)), context=config_context))
        try:
            made = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one was cancelled or steers the graph: leave nothing running behind it
                task.cancel()
        return self._result(request, made)

    def _for_tool(self, request: SampleRequest) -> bool:
        return self.step is not None and request.messages is not self.step.messages

    def _driver(self) -> Sampler:
        return self._asked or ChatModelSampler(self._request.model, arguments=self._driving)

    def _tagged(self, i: int = 0) -> AbstractContextManager[Context]:
        return attempt_context(f"retry:attempt:{self._made + i + 1}")

    def _as(self, request: SampleRequest, i: int) -> ModelRequest[Any]:
        """The agent's request for draw ``i``, its parameters changed only where they differ from the agent's own."""
        changed: dict[str, Any] = {}
        if self._settings.temperature is not None or request.temperature != self.temperature:
            changed["temperature"] = request.temperature
        if self._settings.max_tokens is not None:
            changed["max_tokens"] = self._settings.max_tokens
        if request.seed is not None:
            changed["seed"] = request.seed + i  # or all draws would be one
        if not changed:
            return self._request
        return self._request.override(model_settings={**self._request.model_settings, **changed})

    def _draw(self, asked: ModelRequest[Any]) -> Made | Exception:
        try:
            return self._handler(asked)  # type: ignore[no-any-return]  # LangChain's handler
        except Exception as error:
            if is_control_flow(error):
                raise
            return error

    async def _adraw(self, asked: ModelRequest[Any]) -> Made | Exception:
        try:
            return await self._handler(asked)  # type: ignore[no-any-return]  # LangChain's handler
        except Exception as error:
            if is_control_flow(error):
                raise
            return error

    def _result(self, request: SampleRequest, made: Sequence[Made | Exception]) -> SampleResult:
        good = [m for m in made if isinstance(m, (ModelResponse, StructuredOutputError))]
        errors = [m for m in made if isinstance(m, Exception) and not isinstance(m, StructuredOutputError)]
        rollouts = tuple(self.take(m, request.temperature) for m in good)
        if errors and not rollouts:
            first = errors[0]
            if isinstance(first, RfxError):
                raise first
            raise SamplerError(f"{self.name}: {type(first).__name__}: {first}", calls=len(errors)) from first
        notes = tuple(dict.fromkeys(f"{self.name}: {type(e).__name__}: {e}" for e in errors))
        return SampleResult(rollouts, sum((x.usage for x in rollouts), Usage(calls=len(errors))), notes)


class Judge:
    """The user's verifier, behind what needs no verifier: a draw that is no answer, a text that is no response."""

    bound: Callable[..., Usage]

    def __init__(self, verifier: Verifier, draws: Draws, like: Any, schema: Any) -> None:
        self.name, self.needs_peers = verifier.name, verifier.needs_peers
        self.instant = getattr(verifier, "instant", False)
        self._verifier, self._draws, self._like, self._schema = verifier, draws, like, schema
        if (bound := getattr(verifier, "bound", None)) is not None:
            self.bound = bound

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        if flaw := self._flaw(rollout):
            return Verdict(False, reason=flaw)
        return self._verifier.verify(step, rollout, peers=self._answers(peers))

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The same, without blocking the event loop."""
        if flaw := self._flaw(rollout):
            return Verdict(False, reason=flaw)
        return await self._verifier.averify(step, rollout, peers=self._answers(peers))

    def _answers(self, peers: Sequence[Rollout]) -> tuple[Rollout, ...]:
        return tuple(x for x in peers if not self._flaw(x))

    def _flaw(self, rollout: Rollout) -> str:
        key = rollout.response_id or ""
        if key in self._draws.responses:
            return ""
        if key in self._draws.flaws:
            return self._draws.flaws[key]
        if self._like is None and self._schema is None:
            return ""
        try:
            restored(rollout.text, like=self._like, schema=self._schema)
        except ValueError as error:
            return f"it is no structured response: {str(error)[:300]}"
        return ""


def _said(response: ModelResponse[Any]) -> AIMessage | None:
    return next((m for m in reversed(response.result) if isinstance(m, AIMessage)), None)


async def _only(work: Coroutine[Any, Any, SampleResult]) -> SampleResult:
    return await work
