"""``Recovery``: everything that a step needs to be recovered, checked when it is put together."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rfx_agent._errors import ConfigError
from rfx_agent._types import Message, Rollout, Spend, Step, Usage
from rfx_agent.budgets import Ledger, Price, RetryBudget
from rfx_agent.calibration import Calibration
from rfx_agent.case import Case
from rfx_agent.engine.drivers import drive, drive_async
from rfx_agent.engine.flows import recover
from rfx_agent.events import Event
from rfx_agent.policies import DefaultPolicy, Policy
from rfx_agent.ports import Escalator, Sampler, Scorer, Steerer, Tool, TraceStore, Verifier

__all__ = ["Escalation", "Recovery"]

_log = logging.getLogger("rfx_agent")
_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_INSTANT = 0.001  # seconds reserved for a call, so that none goes out when no time is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """How a person is asked.

    Attributes:
        deadline: seconds that a case stays open, or None for ever.
        default: what applies when nobody answered in time: ``reject``, or ``approve`` for the proposed answer.
    """

    deadline: float | None = 86_400.0
    default: Literal["approve", "reject"] = "reject"

    def __post_init__(self) -> None:
        if self.deadline is not None and not self.deadline > 0:
            raise ConfigError(
                f"escalation: deadline is {self.deadline!r}; give seconds above 0, or None to wait for ever"
            )
        if self.default not in ("approve", "reject"):
            raise ConfigError(f"escalation: default is {self.default!r}; give 'approve' or 'reject'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A sampler, a verifier and the limits under which failures of the first are recovered.

    Immutable and without per-run state: one object serves any number of concurrent steps.

    Attributes:
        sampler: the model that fails, and that is sampled again.
        verifier: tells a success from a failure.
        tool: what ``tool_verify`` runs; without it there is no such route.
        scorer: gives an ancestor's log-probabilities, for two-model evidence.
        steerer: carries out decoding operators that need the logits.
        escalator: asks a person when the graph's own interrupt is not in use.
        policy: decides the routes.
        calibration: the population that features are scored against, and the priors.
        budget: caps for one step.
        price: of the sampler's tokens; required by ``budget.usd``.
        extra_samples: draws asked for when the candidate failed.
        resample_draws: draws of one further round.
        temperature: decode temperature of draws.
        tool_temperature: decode temperature when the model writes the tool's input.
        max_tokens: most tokens per completion.
        seed: of all draws, or None to leave it to the server.
        escalation: deadline and default of a case before a person.
        on_event: called with every event; what it raises is logged, never passed on.
        traces: keeps raw rollouts outside the checkpoint.
        clock: Unix time in seconds, for deadlines.
    """

    sampler: Sampler
    verifier: Verifier
    tool: Tool | None = None
    scorer: Scorer | None = None
    steerer: Steerer | None = None
    escalator: Escalator | None = None
    policy: Policy = field(default_factory=DefaultPolicy)
    calibration: Calibration = field(default_factory=Calibration.published)
    budget: RetryBudget = field(default_factory=RetryBudget)
    price: Price | None = None
    extra_samples: int = 3
    resample_draws: int = 4
    temperature: float = 0.6
    tool_temperature: float = 0.6
    max_tokens: int = 512
    seed: int | None = None
    escalation: Escalation = field(default_factory=Escalation)
    on_event: Callable[[Event], None] | None = None
    traces: TraceStore | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        ports: tuple[tuple[str, Any], ...] = (
            ("sampler", Sampler),
            ("verifier", Verifier),
            ("tool", Tool),
            ("scorer", Scorer),
            ("steerer", Steerer),
            ("policy", Policy),
        )
        for name, port in ports:
            value = getattr(self, name)
            if value is None and name not in ("sampler", "verifier", "policy"):
                continue
            if isinstance(value, type) or not isinstance(value, port):
                raise ConfigError(
                    f"recovery: {name} is {value!r}; give an instance with the members of "
                    f"rfx_agent.ports.{port.__name__}"
                )
        for name, least in (("extra_samples", 0), ("resample_draws", 1), ("max_tokens", 1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"recovery: {name} is {number!r}; give an integer of at least {least}")
        for name in ("temperature", "tool_temperature"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"recovery: {name} is {getattr(self, name)!r}; give a number of at least 0")
        if self.budget.usd is not None and self.price is None:
            raise ConfigError(
                f"recovery: budget.usd is {self.budget.usd} but price is None; give the model's Price, "
                "because an unknown price is not a free one"
            )

    def with_parts(self, **parts: Any) -> Recovery:
        """A copy with some parts replaced, not checked again: for adapters, which make one for every call."""
        made = object.__new__(Recovery)
        for name in _NAMES:
            object.__setattr__(made, name, parts[name] if name in parts else getattr(self, name))
        return made

    def start(self, step: Step | str, candidate: Rollout | str | None = None) -> Case:
        """The case of ``step`` before anything happened.

        Args:
            step: the step, or its prompt.
            candidate: what the agent already has; without it the sampler is asked for the first draw.
        """
        if isinstance(step, str):
            step = Step.of(step)
        run_id = "" if self.on_event is None else secrets.token_hex(8)
        case = Case(step=step, ledger=Ledger(self.budget), run_id=run_id)
        if candidate is None:
            return case
        if isinstance(candidate, str):
            candidate = Rollout(text=candidate)
        return replace(case, rollouts=(replace(candidate, id="r0", round=None, verdict=None),))

    def run(self, step: Step | str, candidate: Rollout | str | None = None) -> Case:
        """Recover ``step`` without a graph, blocking. The case that comes back has an ``outcome``.

        Raises:
            VerifierError: the verifier broke.
            SamplerError: only where the sampler itself is at fault; a model that cannot be reached is an outcome.
        """
        return drive(recover(self, self.start(step, candidate)))

    async def arun(self, step: Step | str, candidate: Rollout | str | None = None) -> Case:
        """The same on the running event loop."""
        return await drive_async(recover(self, self.start(step, candidate)))

    def spend(self, usage: Usage, *, samples: int = 0, seconds: float = 0.0) -> Spend:
        """What ``usage`` costs."""
        return Spend(
            samples=samples,
            tokens=usage.tokens,
            usd=self.price.usd(usage) if self.price else 0.0,
            seconds=seconds,
            calls=usage.calls,
        )

    def bound(self, case: Case, messages: tuple[Message, ...], prefix: str = "") -> Spend:
        """The most that one completion of ``messages`` can cost. How long it takes is the sampler's timeout's matter.

        A token is at least one byte, so the bytes of a prompt bound its tokens. For the step's own prompt the
        server's count is used as soon as there is one.
        """
        read = self._prompt_tokens(case, messages) + len(prefix.encode())
        return self.spend(Usage(read, self.max_tokens, 1), samples=1, seconds=_INSTANT)

    def steering(self, case: Case, draw: Rollout) -> Spend:
        """The most that it can cost to steer ``draw`` once: two models read it to find the junction, and once more as
        far as it is kept. Their tokens are priced as the sampler's."""
        read = 4 * (self._prompt_tokens(case, case.step.messages) + len(draw.text.encode(errors="replace")))
        return self.spend(Usage(read, self.max_tokens, 1), samples=1, seconds=_INSTANT)

    def scoring(self, case: Case, rollouts: Sequence[Rollout]) -> Spend:
        """The most that it can cost to have the ancestor read ``rollouts``. Its tokens are priced as the sampler's."""
        prompt = self._prompt_tokens(case, case.step.messages)
        read = sum(prompt + len(x.text.encode(errors="replace")) for x in rollouts)
        return self.spend(Usage(read, 0, len(rollouts)), seconds=_INSTANT)

    def _prompt_tokens(self, case: Case, messages: tuple[Message, ...]) -> int:
        """At most so many tokens are read for ``messages``."""
        known = max((r.usage.prompt_tokens for r in case.rollouts if r.operator == "retry"), default=0)
        if messages is case.step.messages and known:
            return known
        return _TEMPLATE * len(messages) + sum(len(str(m.get("content", "")).encode()) for m in messages)

    def costs(self, case: Case) -> Mapping[str, Spend]:
        """Per operator that can be carried out, the most that one attempt can cost."""
        draw = self.bound(case, case.step.messages) + Spend(attempts=1)
        costs = {"retry": draw}
        if getattr(self.sampler, "takes_temperature", True):
            costs["local_temp"] = draw
        longest = max((x for x in case.draws() if not x.passed), key=lambda x: len(x.text), default=None)
        if self.steerer is not None and longest is not None:
            costs |= dict.fromkeys(self.steerer.operators, self.steering(case, longest) + Spend(attempts=1))
        if self.tool is not None:
            ask = self.bound(case, self.tool.prompt(case.step))
            costs["tool"] = ask + self.tool.bound + Spend(attempts=1)
        return costs

    def emit(self, event: Event) -> None:
        """Give ``event`` to the hook. A hook that fails must not fail the step that it watches."""
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception:  # noqa: BLE001  # the hook is foreign code
            _log.exception("on_event failed on %s", type(event).__name__)


_NAMES = tuple(f.name for f in fields(Recovery))
