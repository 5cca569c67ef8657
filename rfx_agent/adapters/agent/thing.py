"""The agent's own model call as a thing that can be run again: one more run of everything inside the middleware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables.config import set_config_context

from rfx_agent.adapters.agent.structured import Malformed, said
from rfx_agent.adapters.attempts import CALLS_TOOLS, Again, Made, Thing, in_context, response_id
from rfx_agent.adapters.marks import ended_by_budget
from rfx_agent.adapters.texts import as_text, flawed, restored, told
from rfx_agent.errors import BudgetExhausted, ConfigError
from rfx_agent.ports import Sampler
from rfx_agent.records import Rollout, SampleRequest, Usage, Verdict
from rfx_agent.samplers.chat import ChatModelSampler, rollout_of
from rfx_agent.samplers.chat.connected import connected
from rfx_agent.samplers.chat.models import name_of
from rfx_agent.samplers.chat.parameters import Learned, declared, given, traits_of
from rfx_agent.samplers.chat.read import Prompt

__all__ = [
    "AgentModel",
    "AnswerText",
    "Parameters",
    "Reading",
    "Response",
    "answer_of",
    "connected_request",
    "ended",
    "fits",
    "rollout_of_response",
]

Response: TypeAlias = ModelResponse[Any] | Malformed
Reading: TypeAlias = Callable[[ModelResponse[Any] | Exception], Malformed | None]
"""Whether what a model call gave or raised is a failed answer; None where it is not."""
AnswerText: TypeAlias = Callable[[AIMessage], str]
"""What the verifier reads of a message that answers."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Which parameters of a draw differ from the agent's own.

    Attributes:
        temperature: the user's, or None for the agent's own.
        max_tokens: the user's, or None for the agent's own.
        takes_temperature: whether the model does; None looks whether it has such a field.
        learned: what the agent's models were found to refuse.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    takes_temperature: bool | None = None
    learned: Learned = field(default_factory=dict, compare=False)


def ended(response: ModelResponse[Any]) -> bool:
    """Whether a middleware inside gave what stands in the place of an answer, because the run's budget is used up."""
    message = said(response)
    return message is not None and ended_by_budget(message)


def answer_of(response: ModelResponse[Any]) -> AIMessage | None:
    """The message that answers, or None where the agent goes on: it calls tools, and gives no structured response."""
    message = said(response)
    if message is None or (message.tool_calls and response.structured_response is None):
        return None
    return message


def rollout_of_response(
    made: Response,
    temperature: float | None = None,
    *,
    number: int,
    answer: AnswerText | None = None,
    prompt: Prompt | None = None,
) -> Rollout:
    """What the model gave, as a rollout.

    Args:
        made: what it gave.
        temperature: that it was asked for.
        number: of the run.
        answer: reads the text of a message that answers.
        prompt: what the model was asked, for tokens that nobody counted.
    """
    message = made.message if isinstance(made, Malformed) else said(made)
    if message is None:  # the call raised
        text = made.text if isinstance(made, Malformed) else ""
        return Rollout(text, "r0", response_id=response_id(number), temperature=temperature, usage=Usage(calls=1))
    rollout = rollout_of(message, temperature, message.id or response_id(number), name="r0", prompt=prompt)
    if answer is not None and isinstance(made, ModelResponse) and answer_of(made) is not None:
        text = answer(message)
        if not isinstance(text, str):
            raise ConfigError(
                f"RecoverabilityMiddleware: answer returned {text!r}; give a function that returns the text to verify"
            )
        return rollout if text == rollout.text else replace(rollout, text=text, tokens=None)
    if isinstance(made, ModelResponse) and made.structured_response is not None:
        # The tokens spell the model's own text, and no place in this one.
        return replace(rollout, text=as_text(made.structured_response), tokens=None)
    if isinstance(made, Malformed) and made.text != rollout.text:
        return replace(rollout, text=made.text, tokens=None)
    return rollout


class AgentModel(Thing):
    """The agent's own model call, through the middleware inside, as a thing that can be run again.

    Attributes:
        temperature: the agent's own as far as it is known, else that of ``nominal``, a draw as the engine asks for it.
        going_on: the first run that calls tools instead of answering, or None.
    """

    def __init__(
        self,
        request: ModelRequest[Any],
        handler: Callable[..., Any],
        model: Sampler | None,
        settings: Parameters,
        nominal: SampleRequest,
        *,
        reads: Reading = lambda _: None,
        answer: AnswerText | None = None,
        revises: bool = True,
        root: AgentModel | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._request, self._handler, self._model, self._settings = request, handler, model, settings
        self._nominal, self._root, self._names = nominal, root or self, names
        self._reads, self._answer = reads, answer
        self.takes_revision = revises
        own_model, takes = request.model, settings.takes_temperature
        self._traits = traits_of(own_model, settings.learned)
        self.name = name_of(own_model)
        has = [name for name in ("temperature", "max_tokens") if declared(own_model, name) is not None]
        self.takes_temperature = "temperature" in has if takes is None else takes
        self.takes_temperature &= "temperature" not in self._traits.refused
        self.takes_max_tokens = "max_tokens" in has or settings.max_tokens is not None
        self.takes_max_tokens &= "max_tokens" not in self._traits.refused
        self._driving = tuple(name for name in has if name != "temperature" or takes is not False)
        own = request.model_settings.get("temperature", getattr(own_model, "temperature", None))
        known = own if isinstance(own, (int, float)) and own >= 0 else nominal.temperature
        self.temperature = known if settings.temperature is None else settings.temperature
        self.going_on: ModelResponse[Any] | None = None

    def driver(self) -> Sampler:
        """The model that drives the tool: the one given, else the agent's own, without its tools."""
        if self._model is not None:
            return self._model
        driver = ChatModelSampler(self._request.model, arguments=self._driving)
        driver.learned = self._settings.learned
        return driver

    def run(self, again: Again) -> Response:
        """One more call of the model. Its tokens are left out of streams."""
        with set_config_context(again.config(sync=True)) as context:
            while True:
                asked, sent = self._as(again)
                try:
                    sent_on = connected_request(asked, asynchronous=False)
                    return context.run(self._handler, sent_on)  # type: ignore[no-any-return]  # LangChain's handler
                except StructuredOutputError:
                    raise  # it quotes what the model wrote
                except Exception as error:
                    if self._traits.learns(asked.model, error, sent, asked.model_settings) is None:
                        raise

    async def arun(self, again: Again) -> Response:
        """Do what ``run`` does, without blocking the event loop."""
        with set_config_context(again.config(sync=False)) as context:
            while True:
                asked, sent = self._as(again)
                try:
                    reply = self._handler(connected_request(asked, asynchronous=True))
                    return await in_context(reply, context)  # type: ignore[no-any-return]  # as above
                except StructuredOutputError:
                    raise  # it quotes what the model wrote
                except Exception as error:
                    if self._traits.learns(asked.model, error, sent, asked.model_settings) is None:
                        raise

    def made(self, output: Response, again: Again) -> Made:
        """What the model gave. A response that calls tools is no answer."""
        if isinstance(output, ModelResponse) and ended(output):
            return Made(error=BudgetExhausted("the budget of the run is used up", caps=()), usage=Usage())
        if isinstance(output, ModelResponse):
            output = self._root._reads(output) or output
        temperature = None if "temperature" in self._traits.refused else again.request.temperature
        asked = self._request
        prompt = [*([] if asked.system_message is None else [asked.system_message]), *asked.messages]
        rollout = rollout_of_response(
            output, temperature, number=again.number, answer=self._root._answer, prompt=prompt
        )
        rollout = replace(rollout, usage=again.reported.usage(rollout.usage))
        if isinstance(output, Malformed):
            return Made(rollout, flaw=output.flaw, usage=rollout.usage)
        if answer_of(output) is None:
            self._root.going_on = self._root.going_on or output
            return Made(rollout, flaw=CALLS_TOOLS, usage=rollout.usage)
        return Made(rollout, output, usage=rollout.usage)

    def failed(self, error: Exception, again: Again) -> Made:
        """What a run raised: a failed answer, as where LangChain cannot parse it; or the agent is out of order."""
        flawed_answer = self._root._reads(error)
        if flawed_answer is not None:
            return self.made(flawed_answer, again)
        return Made.broken(error, again)

    def _as(self, again: Again) -> tuple[ModelRequest[Any], Mapping[str, str]]:
        """The agent's request, its parameters changed only where they differ from the agent's own; which are set."""
        request, changed = again.request, dict[str, Any]()
        set_here = self._settings.temperature is not None or request.temperature != self.temperature
        if set_here and self._settings.takes_temperature is not False:
            changed["temperature"] = request.temperature
        raised = request.max_tokens != self._nominal.max_tokens and self.takes_max_tokens
        if self._settings.max_tokens is not None or raised:
            changed["max_tokens"] = request.max_tokens
        if request.seed is not None:
            changed["seed"] = request.seed + again.index  # or all draws would be one
        if self._names is not None:  # another model's, which its sampler knows
            changed = {name: value for name, value in changed.items() if name in self._names}
        asked = self._request
        if request.revision is not None:  # in this request alone, never in the thread
            asked = asked.override(messages=told(list(asked.messages), request.revision) or asked.messages)
        if not changed and not self._traits.cleared:
            return asked, {}
        model, arguments, sent = given(asked.model, changed, self._traits)
        own = {name: value for name, value in asked.model_settings.items() if name not in sent}
        return asked.override(model=cast("BaseChatModel", model), model_settings=own | arguments), sent

    def on(self, other: Sampler) -> AgentModel | None:
        """The agent's request to another chat model, with its tools and its structured response.

        One that is wrapped, as by ``with_retry``, takes no tools, and is asked alone.
        """
        if not isinstance(other, ChatModelSampler) or not isinstance(other.model, BaseChatModel):
            return None
        request, names = self._request.override(model=other.model), other.arguments
        settings = replace(self._settings, takes_temperature="temperature" in names)
        return AgentModel(request, self._handler, self._model, settings, self._nominal, root=self._root, names=names)


def fits(like: Any, schema: Any) -> Callable[[str], Verdict | None] | None:
    """Tells why a text of another origin is no structured response, for ``Shield``; None where any text will do."""
    if like is None and schema is None:
        return None

    def flaw(text: str) -> Verdict | None:
        try:
            restored(text, like=like, schema=schema)
        except ValueError as error:
            return flawed(error, "it is no structured response")
        return None

    return flaw


def connected_request(request: ModelRequest[Any], *, asynchronous: bool) -> ModelRequest[Any]:
    """``request`` to the same model on connections that count tries, where ``connected`` has such for it."""
    model: Any = connected(request.model, asynchronous=asynchronous)
    return request if model is request.model else request.override(model=model)
