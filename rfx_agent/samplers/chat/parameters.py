"""How a chat model is given the parameters of one draw, and which of them it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig

from rfx_agent.errors import SamplerError
from rfx_agent.samplers.chat.models import name_of
from rfx_agent.samplers.openai.provider_errors import causes, status_of, tries, words_of
from rfx_agent.samplers.openai.transport import Tally
from rfx_agent.samplers.refusals import REFUSALS, refused_parameter

__all__ = ["PARAMETERS", "Asked", "Draw", "Learned", "Traits", "cap_in", "declared", "given", "traits_of"]

PARAMETERS = ("temperature", "max_tokens", "seed", "logprobs", "top_logprobs")
"""What a draw may set on a chat model, by the names that most classes give them."""

# The other names of max_tokens that classes declare.
_CAPS = ("max_tokens", "max_output_tokens", "max_completion_tokens", "max_new_tokens", "num_predict", "maxTokens")
_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")


def declared(model: object, parameter: str) -> str | None:
    """The field of ``model``'s class that holds ``parameter``; None where it declares none.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> declared(FakeListChatModel(responses=["7"]), "max_tokens") is None
        True
    """
    fields = getattr(type(model), "model_fields", {})
    return next((name for name in (_CAPS if parameter == "max_tokens" else (parameter,)) if name in fields), None)


def cap_in(arguments: Any) -> int | None:
    """The most tokens that a call with ``arguments`` may write, under any of its names; None where none is set.

    Example:
        >>> cap_in({"model": "m", "max_completion_tokens": 64})
        64
    """
    told = [arguments.get(name) for name in _CAPS] if isinstance(arguments, Mapping) else []
    return next((x for x in told if type(x) is int and x >= 0), None)


@dataclass(slots=True)
class Traits:
    """What is known of one model; learned from its errors and kept for its sampler's life.

    Attributes:
        by_field: whether its calls take no parameters, so that they are set on a copy of the model.
        names: a parameter's name where it was learned that it is another one.
        refused: parameters that it does not take, with its reason.
        cleared: those of its own fields that are emptied on a copy, because their defaults were refused too (Gemini's).
    """

    by_field: bool = False
    names: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    cleared: dict[str, None] = field(default_factory=dict)

    def learns(
        self, model: object, error: Exception, sent: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> int | None:
        """Learn from ``error`` what the model refuses of ``sent``; None where it refuses none of that.

        Args:
            model: that was asked, with the fields that it had then.
            error: what it raised.
            sent: the parameters that it was asked with, and the names under which they were sent.
            arguments: of the call.

        Returns:
            The requests that the refusal took: 0 where nothing reached the provider.
        """
        if isinstance(error, OutputParserException):
            return None  # it quotes what the model wrote
        chain = [*causes(error)]
        told = ((getattr(x, "param", ""), getattr(x, "code", ""), x, words_of(getattr(x, "body", None))) for x in chain)
        said = " ".join(f"'{param}' {code} {error} {words}" for param, code, error, words in told)
        if isinstance(error, TypeError) and (keyword := _KEYWORD.search(said)):
            refused = next((p for p, name in sent.items() if name == keyword[1]), None)
            if refused is not None and keyword[1] in arguments and declared(model, refused):
                self.by_field = True
                return 0
        else:
            status = next((code for x in chain if (code := status_of(x)) is not None), None)
            if status is not None and status not in REFUSALS:
                return None
            refused = refused_parameter({*sent, *_own(model)}, said, strict=status is None)
        if refused is None:
            return None
        if refused == "max_tokens" and "max_completion_tokens" in said and sent[refused] == "max_tokens":
            self.names[refused] = "max_completion_tokens"
        else:
            self.cleared |= dict.fromkeys(_own(model).get(refused, ()))
            self.refused.setdefault(refused, str(error))
        return 0 if isinstance(error, TypeError | ValueError) else 1


Learned: TypeAlias = dict[tuple[type, str], Traits]
"""What was learned of several models, by class and name: a configurable one is another object in every call."""


def traits_of(model: Runnable[Any, Any], learned: Learned) -> Traits:
    """What is known of ``model``, kept in ``learned``."""
    key = type(model), name_of(model)
    if key not in learned:
        profile = getattr(model, "profile", None) if isinstance(model, BaseChatModel) else None
        none = isinstance(profile, Mapping) and profile.get("temperature") is False
        learned.setdefault(key, Traits(refused={"temperature": f"the profile of {key[1]}"} if none else {}))
    return learned[key]


def given(
    model: Runnable[Any, Any], values: Mapping[str, Any], traits: Traits
) -> tuple[Runnable[Any, Any], dict[str, Any], dict[str, str]]:
    """How ``model`` is given ``values``: the model to call, the arguments of the call, and what is sent by which name.

    A call's arguments are tried first, as LangChain's own do it. A class whose client takes none (Ollama's) has them
    set on a copy, which shares the client. A parameter that the model refused is left out.
    """
    refused = set(traits.refused)
    if "logprobs" in refused:
        refused.add("top_logprobs")
    sent: dict[str, str] = {}
    for parameter in values:
        if parameter in refused:
            continue
        name = traits.names.get(parameter) or declared(model, parameter) or parameter
        if not traits.by_field or declared(model, parameter) == name:
            sent[parameter] = name
    by_name = {name: values[parameter] for parameter, name in sent.items()}
    fields = traits.cleared | (by_name if traits.by_field else {})
    if fields and isinstance(model, BaseChatModel):
        model = model.model_copy(update=fields)
    return model, {} if traits.by_field else by_name, sent


def _own(model: object) -> dict[str, tuple[str, ...]]:
    """The parameters that ``model`` itself sets, and in which fields. A cap is left alone: some providers need one."""
    fields = {"temperature": ("temperature",), "seed": ("seed",), "logprobs": ("logprobs", "top_logprobs")}
    if not isinstance(model, BaseChatModel):
        return {}
    set_here = {p: tuple(n for n in names if getattr(model, n, None) is not None) for p, names in fields.items()}
    return {parameter: names for parameter, names in set_here.items() if names and declared(model, parameter)}


@dataclass(slots=True)
class Draw:
    """One draw: what is asked for, and what became of it.

    Attributes:
        values: the parameters, by the names of ``PARAMETERS``.
        calls: requests made so far, refused ones included.
        sent: the parameters that the last request had.
        tally: the tries of its requests, where the model's connections count them.
        missed: the tries that were lost as far as the errors of its requests tell, for where nobody counts.
    """

    values: Mapping[str, Any]
    calls: int = 0
    sent: Mapping[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    missed: int = 0

    def taken(self, parameter: str) -> Any:
        """The value of ``parameter`` that the model was asked with, or None."""
        return self.values[parameter] if parameter in self.sent else None

    @property
    def tried(self) -> tuple[int, int]:
        """Tries so far, and those of them that left, where anybody counts them."""
        return self.tally.tried, self.tally.sent

    def count(self, calls: int, before: tuple[int, int]) -> None:
        """Count ``calls``, or the requests that have left since ``before`` where anybody counts them."""
        tried, sent = before
        self.calls += self.tally.sent - sent if self.tally.tried > tried else calls

    def made(self, failure: SamplerError | None) -> int:
        """Requests that it took, a client's own retries included as far as anybody counts them."""
        if self.tally.tried:
            return self.calls
        return max(self.calls, 1) + (0 if failure is None else max(failure.calls - 1, 0))

    def lost(self, failure: SamplerError | None) -> int:
        """Of these, the ones that a provider may have worked on and that brought nothing.

        Args:
            failure: what the draw ended in, or None where it brought an answer.
        """
        if not self.tally.tried:
            return self.missed
        return self.tally.lost + max(0, self.tally.whole - (failure is None))


class Asked(Runnable[Any, Any]):
    """A chat model in one draw: asked with the draw's parameters, and again without those that it refuses."""

    def __init__(self, model: Runnable[Any, Any], traits: Traits, draw: Draw) -> None:
        self._model, self._traits, self._draw = model, traits, draw

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's
        """See ``Runnable``."""
        while True:
            model, arguments, sent = self._given(kwargs)
            before = self._draw.tried
            try:
                answer = model.invoke(input, config, **arguments)
            except Exception as error:
                if not self._learned(model, error, sent, arguments, before):
                    raise
            else:
                self._draw.count(1, before)
                return answer

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002  # LangChain's
        """See ``Runnable``."""
        while True:
            model, arguments, sent = self._given(kwargs)
            before = self._draw.tried
            try:
                answer = await model.ainvoke(input, config, **arguments)
            except Exception as error:
                if not self._learned(model, error, sent, arguments, before):
                    raise
            else:
                self._draw.count(1, before)
                return answer

    def _given(self, bound: dict[str, Any]) -> tuple[Runnable[Any, Any], dict[str, Any], dict[str, str]]:
        """The draw's parameters come before those that somebody bound to the model, also under another name."""
        model, arguments, sent = given(self._model, self._draw.values, self._traits)
        hidden = {*sent, *sent.values()} | ({*_CAPS} if "max_tokens" in sent else set())
        self._draw.sent = sent
        return model, {name: value for name, value in bound.items() if name not in hidden} | arguments, sent

    def _learned(
        self,
        model: object,
        error: Exception,
        sent: Mapping[str, str],
        arguments: Mapping[str, Any],
        before: tuple[int, int],
    ) -> bool:
        took = self._traits.learns(model, error, sent, arguments)
        self._draw.count(1 if took is None else took, before)
        if took is None:
            lost = tries(error)[1]
            self._draw.missed += 1 if lost is None else lost
        return took is not None
