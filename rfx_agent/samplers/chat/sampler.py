"""Any LangChain chat model as a sampler."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor

from rfx_agent._collector import collector_paused
from rfx_agent.checks import among
from rfx_agent.errors import ConfigError, SamplerError, SamplerTimeout, is_control_flow
from rfx_agent.ports import Sampler
from rfx_agent.records import SampleRequest, SampleResult, Usage
from rfx_agent.samplers.chat.connected import connected
from rfx_agent.samplers.chat.models import model_of, models_in, most_calls, name_of, secrets_in, with_models
from rfx_agent.samplers.chat.parameters import PARAMETERS, Asked, Draw, Learned, traits_of
from rfx_agent.samplers.chat.read import lost_usage, rollout_of
from rfx_agent.samplers.openai.provider_errors import map_error
from rfx_agent.samplers.openai.secrets import plain_line, without_keys
from rfx_agent.samplers.openai.transport import TALLY
from rfx_agent.samplers.usage import LOST

__all__ = ["ChatModelSampler"]

_log = logging.getLogger("rfx_agent")
_MOST_THREADS = 16
_EFFECTS = {  # what a draw goes without where the model refuses a parameter
    "temperature": "drawn at the model's own temperature",
    "max_tokens": "drawn under the model's own max_tokens",
    "seed": "drawn without a seed",
    "logprobs": "sampled without log-probabilities",
}


class ChatModelSampler(Sampler):
    """Any LangChain chat model as a sampler: ``n`` concurrent calls, with the tokens that its messages report.

    Parameters go to the model as arguments of the call, under the name that its class declares; a class whose calls
    take none (``ChatOllama``) has them set on a copy. One that the model refuses is left out from then on, and every
    result says so in its notes. Tokens that nobody counted are estimated from the text.

    A ``ChatOpenAI`` or ``AzureChatOpenAI`` is asked over connections of this package, unless you configured its own:
    no redirect is followed, answers are bounded in time and size, and tries that were lost are charged. Other models
    are asked as they are; see docs/backends.md.

    Args:
        model: a chat model, as it is or after ``bind``, ``bind_tools``, ``with_retry``, ``with_fallbacks``,
            ``with_config``, ``configurable_fields`` or ``configurable_alternatives``; or a name as ``init_chat_model``
            takes it, such as ``"openai:gpt-4o-mini"``, which needs ``rfx-agent[langchain]`` and the provider's package.
        arguments: the parameters that are set on the model, among ``temperature``, ``max_tokens``, ``seed``,
            ``logprobs`` and ``top_logprobs``; the others are left to it.

    Attributes:
        learned: what was learned of each model inside; samplers of one model may share it.

    Raises:
        ConfigError: when ``model`` is no chat model or cannot be made, or an argument is unknown.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from rfx_agent.records import SampleRequest
        >>> sampler = ChatModelSampler(FakeListChatModel(responses=["7"]))
        >>> sampler.sample(SampleRequest(({"role": "user", "content": "3 + 4?"},))).rollouts[0].text
        '7'
    """

    def __init__(
        self,
        model: BaseChatModel | Runnable[Any, Any] | str,
        *,
        arguments: Sequence[str] = ("temperature", "max_tokens"),
    ) -> None:
        for name in arguments:
            among("ChatModelSampler: arguments", name, PARAMETERS)
        self.model = model_of(model)
        self.arguments = tuple(arguments)
        self.name = name_of(next(models_in(self.model)))
        self.max_calls = most_calls(self.model)
        self.learned: Learned = {}
        self._asker = 0  # the process that asked last

    def __repr__(self) -> str:
        return f"ChatModelSampler({self.name!r})"  # the model's own may hold its key

    @property
    def takes_temperature(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether a temperature is set, and was not refused."""
        return self._takes("temperature")

    @property
    def takes_max_tokens(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether a cap is set, and was not refused."""
        return self._takes("max_tokens")

    def sample(self, request: SampleRequest) -> SampleResult:
        """Draw ``request.n`` completions.

        Raises:
            SamplerError: nothing came back. Where a part did, that is returned with a note.
            ConfigError: ``request.prefix``, which no chat model continues.
        """
        messages, draws = self._messages(request), self._draws(request)

        def one(at: int) -> BaseMessage | Exception:
            TALLY.set(draws[at].tally)
            try:
                asked = self._asked(draws[at], asynchronous=False)
                return asked.invoke(messages, _tagged(at))  # type: ignore[no-any-return]  # a message
            except Exception as error:  # noqa: BLE001  # one failed call of several; sorted out in _result
                return error
            finally:
                TALLY.set(None)

        if request.n == 1:
            return self._result(request, draws, [one(0)])
        with ContextThreadPoolExecutor(max_workers=min(request.n, _MOST_THREADS)) as pool:
            return self._result(request, draws, list(pool.map(one, range(request.n))))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        messages, draws = self._messages(request), self._draws(request)

        async def one(at: int) -> Any:
            TALLY.set(draws[at].tally)  # each runs as a task, in a context of its own
            return await self._asked(draws[at], asynchronous=True).ainvoke(messages, _tagged(at))

        answers = await asyncio.gather(*map(one, range(request.n)), return_exceptions=True)
        if any(isinstance(x, BaseMessage) and x.response_metadata.get("logprobs") for x in answers):
            return await asyncio.to_thread(self._tables, request, draws, answers)
        return self._result(request, draws, answers)

    def _tables(self, request: SampleRequest, draws: Sequence[Draw], answers: Sequence[Any]) -> SampleResult:
        """``_result`` of answers with log-probabilities, which take a while to read."""
        with collector_paused():
            return self._result(request, draws, answers)

    def _takes(self, parameter: str) -> bool:
        known = self.learned.values()
        return parameter in self.arguments and not (known and all(parameter in x.refused for x in known))

    def _asked(self, draw: Draw, *, asynchronous: bool) -> Runnable[Any, Any]:
        """The model with the parameters of ``draw``, as the config that is active here configures it."""
        if self._asker != (pid := os.getpid()):
            if self._asker:
                _log.warning(
                    "%s: this model was asked before the process was forked. Its connections are the parent's, so "
                    "answers can be mixed up: ask no LangChain model before a fork",
                    self.name,
                )
            self._asker = pid

        def asked(model: Runnable[Any, Any]) -> Asked:
            return Asked(connected(model, asynchronous=asynchronous), traits_of(model, self.learned), draw)

        return with_models(self.model, asked)

    def _messages(self, request: SampleRequest) -> list[BaseMessage]:
        if request.prefix is not None:
            raise ConfigError("ChatModelSampler: prefix is set, but a LangChain chat model continues none")
        return convert_to_messages([dict(m) for m in request.messages])

    def _draws(self, request: SampleRequest) -> list[Draw]:
        return [Draw(self._values(request, draw)) for draw in range(request.n)]

    def _values(self, request: SampleRequest, draw: int) -> dict[str, Any]:
        values = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            # A server that honours seeds would give equal calls one and the same draw.
            "seed": None if request.seed is None else request.seed + draw,
            "logprobs": True if request.want_logprobs else None,
            "top_logprobs": 20 if request.want_logprobs else None,
        }
        return {name: values[name] for name in self.arguments if values[name] is not None}

    def _result(self, request: SampleRequest, draws: Sequence[Draw], answers: Sequence[Any]) -> SampleResult:
        for x in answers:
            if isinstance(x, BaseException) and (is_control_flow(x) or not isinstance(x, Exception)):
                raise x
        failures = [self._failure(x) if isinstance(x, Exception) else None for x in answers]
        secrets = secrets_in(self.model)
        rollouts = tuple(
            without_keys(
                secrets,
                rollout_of(x, draw.taken("temperature"), prompt=request.messages, cap=draw.taken("max_tokens")),
            )
            for draw, x in zip(draws, answers, strict=True)
            if isinstance(x, BaseMessage)
        )
        ends = [*zip(draws, failures, strict=True)]
        calls = sum(draw.made(failure) for draw, failure in ends)
        lost = [draw.lost(failure) for draw, failure in ends]
        if not rollouts:
            at, failure = next(((i, x) for i, x in enumerate(failures) if x is not None), (0, None))
            failure = failure or SamplerError(f"{self.name} gave a {type(answers[0]).__name__}")
            failure.calls, failure.lost = calls, -(-sum(lost) // request.n)
            raise failure from (answers[at] if isinstance(answers[at], Exception) else None)
        notes = [*dict.fromkeys(str(x) for x in failures if x is not None), *self._left_out(request, secrets)]
        notes += [f"{LOST} (x{sum(lost)})" if sum(lost) > 1 else LOST] if any(lost) else []
        lacking = sum(x.logprobs is None for x in rollouts)
        if request.want_logprobs and lacking:
            some = "" if lacking == len(rollouts) else f" that can be used for {lacking} of {len(rollouts)} draws"
            notes.append(f"{self.name} gave no log-probabilities{some}")
        usage = sum((x.usage for x in rollouts), Usage())
        for draw, times in zip(draws, lost, strict=True):
            usage += lost_usage(request.messages, draw.taken("max_tokens") or request.max_tokens, times)
        return SampleResult(rollouts, usage + Usage(calls=calls - usage.calls), tuple(notes))

    def _failure(self, error: Exception) -> SamplerError:
        """``error`` of the model, without the keys that it may quote."""
        mapped = map_error(error, secrets_in(self.model))
        if mapped is error:
            return mapped
        make = SamplerTimeout if isinstance(mapped, SamplerTimeout) else SamplerError
        told = {"status": mapped.status, "transient": mapped.transient, "calls": mapped.calls, "lost": mapped.lost}
        return make(f"{self.name}: {mapped}", **told)  # type: ignore[arg-type]  # each as it was

    def _left_out(self, request: SampleRequest, secrets: tuple[str, ...]) -> list[str]:
        """What the draws went without because the model refused it."""
        refused = {name: why for traits in self.learned.values() for name, why in traits.refused.items()}
        wanted = self._values(request, 0)
        return [
            f"{effect} ({plain_line(refused[name], 300, secrets)})"
            for name, effect in _EFFECTS.items()
            if name in refused and name in wanted
        ]


def _tagged(draw: int) -> RunnableConfig:
    return {"tags": [f"retry:attempt:{draw + 1}"]}
