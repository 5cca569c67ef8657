"""The same step on another, stronger model, at that model's own price."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rfx_agent.accepted import SamplerLike, sampler_of
from rfx_agent.budgets.step import Price
from rfx_agent.case import Case
from rfx_agent.checks import instance, number, shown, spelled, whole
from rfx_agent.engine import costs
from rfx_agent.engine.drive import Flow
from rfx_agent.engine.run import Run
from rfx_agent.errors import ConfigError
from rfx_agent.ports import Remedy, Sampler
from rfx_agent.records import REMEDY_NAME, SampleRequest, Spend
from rfx_agent.remedies.base import asking, candidates, seed_of

__all__ = ["Delegate"]


@spelled("Delegate", {"model": "sampler="})
@dataclass(frozen=True)
class Delegate(Remedy):
    """One draw of ``sampler`` from the original prompt. Several, each with a name of its own, form a cascade.

    The ledger and a shared budget charge it at ``price``, under the sampler's name; limits by model hold for it.

    Attributes:
        sampler: the other model; a LangChain chat model or its name will do.
        name: of the remedy, ``delegate`` or ``delegate_<name>``.
        price: of its tokens; required wherever the deployment has a price, because an unknown price is not a free one.
        temperature: of its draws; by default the run's.
        max_tokens: most tokens of one completion; by default ``Recovery.max_tokens``.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.testing import ScriptedSampler
        >>> Delegate(ScriptedSampler(["7"]), "delegate_large", price=Price(prompt=2.5, completion=10)).node
        'delegate'
    """

    sampler: Sampler
    name: str = "delegate"
    price: Price | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    node: str = field(default="delegate", init=False)
    words: str = field(default="", init=False)
    elsewhere: bool = field(default=True, init=False)

    if TYPE_CHECKING:  # what may be given; the field holds what was made of it

        def __init__(
            self,
            sampler: SamplerLike,
            name: str = "delegate",
            price: Price | None = None,
            temperature: float | None = None,
            max_tokens: int | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", sampler_of(self.sampler, where="Delegate: sampler"))
        named = isinstance(self.name, str) and REMEDY_NAME.fullmatch(self.name)
        if not named or not (self.name == "delegate" or self.name.startswith("delegate_")):
            raise ConfigError(f"Delegate: name is {shown(self.name)}; give 'delegate' or 'delegate_' and [a-z0-9_]")
        if self.price is not None:
            instance("Delegate: price", self.price, Price, "a Price, or price_of(the model's name)")
        if self.temperature is not None:
            number("Delegate: temperature", self.temperature, least=0)
        if self.max_tokens is not None:
            whole("Delegate: max_tokens", self.max_tokens, least=1)
        object.__setattr__(self, "words", f"the model {self.sampler.name}")

    def bound(self, run: Run, case: Case) -> Spend | str:
        """See ``Remedy``."""
        return self._each(run, case) + Spend(attempts=1)

    def attempt(self, run: Run, case: Case) -> Flow[Case]:
        """See ``Remedy``."""
        heat = run.temperature if self.temperature is None else self.temperature
        most = run.settings.max_tokens if self.max_tokens is None else self.max_tokens
        request = SampleRequest(case.step.messages, 1, heat, most, seed_of(run, case), want_logprobs=False)
        sampler = self.sampler if run.sampler is None else run.sampler.on(self.sampler)
        asked = asking(sampler, request, self._each(run, case), price=self.price, blocks=False, elsewhere=True)
        return (yield from candidates(run, case, self.name, 1, asked))

    def _each(self, run: Run, case: Case) -> Spend:
        # The other model has a tokenizer of its own, so the prompt is bounded by its bytes.
        read, calls = costs.bytes_of(case.step.messages), self.sampler.max_calls
        return costs.of_completion(run, read, calls=calls, cap=self.max_tokens, price=self.price)
