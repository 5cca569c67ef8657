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
from rfx_agent.escalation.notify import Notifier, Notify, notifier_of
from rfx_agent.events import Event
from rfx_agent.policies import DefaultPolicy, Policy
from rfx_agent.ports import Escalator, Sampler, Scorer, Steerer, Tool, TraceStore, Verifier
from rfx_agent.shared import SharedBudget

__all__ = ["Escalation", "Recovery"]

_log = logging.getLogger("rfx_agent")
_TEMPLATE = 64  # tokens that a chat template may add to each message's own text
_PER_TOKEN = 4  # characters of a token, on average; for estimates that nothing is capped by
_INSTANT = 0.001  # seconds reserved for a call, so that none goes out when no time is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """How a person is asked.

    Attributes:
        deadline: seconds that a case stays open, or None for ever.
        default: what applies when nobody answered in time: ``reject``, or ``approve`` for the proposed answer, if
            the verifier found an answer in it. It is applied when the case is next looked at, and once.
        notify: told when a case opens: a function of what the person will be shown, sync or async, or a
            ``Notifier`` such as ``rfx_agent.escalation.Webhook``. A failure to tell is a note of the case.
    """

    deadline: float | None = 86_400.0
    default: Literal["approve", "reject"] = "reject"
    notify: Notify | None = None

    @property
    def notifier(self) -> Notifier | None:
        """``notify``, with both its sides."""
        return None if self.notify is None else notifier_of(self.notify)

    def __post_init__(self) -> None:
        if self.deadline is not None and not self.deadline > 0:
            raise ConfigError(
                f"escalation: deadline is {self.deadline!r}; give seconds above 0, or None to wait for ever"
            )
        if self.default not in ("approve", "reject"):
            raise ConfigError(f"escalation: default is {self.default!r}; give 'approve' or 'reject'")
        if self.notify is not None and (isinstance(self.notify, type) or not _tells(self.notify)):
            raise ConfigError(f"escalation: notify is {self.notify!r}; give a function of the payload, or a Notifier")


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
        shared: what many runs may spend together, and the record that lets a run survive its process; or None.
        price: of the sampler's tokens; required by a cap on money, in ``budget`` or in ``shared``. See
            ``rfx_agent.price_of``.
        extra_samples: draws asked for when the candidate failed.
        resample_draws: draws of one further round.
        temperature: decode temperature of draws.
        tool_temperature: decode temperature when the model writes the tool's input.
        max_tokens: most tokens per completion.
        verdict_seconds: a verifier that has not answered by then is broken off, and what it was judging is not
            accepted; None waits without end, and lets a sync verifier run on the thread that asks.
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
    shared: SharedBudget | None = None
    price: Price | None = None
    extra_samples: int = 3
    resample_draws: int = 4
    temperature: float = 0.6
    tool_temperature: float = 0.6
    max_tokens: int = 512
    verdict_seconds: float | None = 60.0
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
        if self.verdict_seconds is not None and not self.verdict_seconds > 0:
            raise ConfigError(
                f"recovery: verdict_seconds is {self.verdict_seconds!r}; give seconds above 0, or None for no limit"
            )
        if self.shared is not None and not isinstance(self.shared, SharedBudget):
            raise ConfigError(f"recovery: shared is {self.shared!r}; give a SharedBudget of a store and its limits")
        money = None if self.budget.usd is None else f"budget.usd is {self.budget.usd}"
        if self.shared is not None and "usd" in self.shared.units():
            money = "shared limits usd"
        if money is not None and self.price is None:
            raise ConfigError(
                f"recovery: {money} but price is None; give price_of(the model's name) or a Price, because an unknown "
                "price is not a free one"
            )

    def with_parts(self, **parts: Any) -> Recovery:
        """A copy with some parts replaced, not checked again: for adapters, which make one for every call."""
        made = object.__new__(Recovery)
        for name in _NAMES:
            object.__setattr__(made, name, parts[name] if name in parts else getattr(self, name))
        return made

    def start(self, step: Step | str, candidate: Rollout | str | None = None, *, run_id: str = "") -> Case:
        """The case of ``step`` before anything happened.

        Args:
            step: the step, or its prompt.
            candidate: what the agent already has; without it the sampler is asked for the first draw.
            run_id: of this run of the step, the same when it is started again after its process died: with a
                ``shared`` budget it then takes up what was paid for. By default a new one.
        """
        if isinstance(step, str):
            step = Step.of(step)
        if not run_id and (self.on_event is not None or self.shared is not None):
            run_id = secrets.token_hex(8)
        case = Case(step=step, ledger=Ledger(self.budget), run_id=run_id)
        if candidate is None:
            return case
        if isinstance(candidate, str):
            candidate = Rollout(text=candidate)
        return replace(case, rollouts=(replace(candidate, id="r0", round=None, verdict=None),))

    def run(self, step: Step | str, candidate: Rollout | str | None = None, *, run_id: str = "") -> Case:
        """Recover ``step`` without a graph, blocking. The case that comes back has an ``outcome``.

        Args:
            step, candidate, run_id: see ``start``.

        Raises:
            VerifierError: the verifier broke.
            ToolError: the tool broke with an exception that is none of its own.
            SamplerError: only where the sampler itself is at fault; a model that cannot be reached is an outcome.
        """
        return drive(recover(self, self.start(step, candidate, run_id=run_id)))

    async def arun(self, step: Step | str, candidate: Rollout | str | None = None, *, run_id: str = "") -> Case:
        """The same on the running event loop."""
        return await drive_async(recover(self, self.start(step, candidate, run_id=run_id)))

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
        calls = getattr(self.sampler, "max_calls", 1)
        return self.spend(Usage(read, self.max_tokens, calls), samples=1, seconds=_INSTANT)

    def steering(self, case: Case, draw: Rollout) -> Spend:
        """The most that it can cost to steer ``draw`` once: two models read it to find the junction, and once more as
        far as it is kept. Their tokens are priced as the sampler's."""
        read = 4 * (self._prompt_tokens(case, case.step.messages) + len(draw.text.encode(errors="replace")))
        calls = getattr(self.steerer, "max_calls", 1)
        return self.spend(Usage(read, self.max_tokens, calls), samples=1, seconds=_INSTANT)

    def traffic(self, case: Case) -> Spend:
        """What the candidate of ``case`` is as normal traffic; its tokens are estimated where nobody counted them."""
        usage = case.rollouts[0].usage
        if not usage.tokens:
            prompt = sum(len(str(m.get("content", ""))) for m in case.step.messages)
            usage = Usage(prompt // _PER_TOKEN, len(case.rollouts[0].text) // _PER_TOKEN)
        return self.spend(usage) + Spend(attempts=1)

    def scoring(self, case: Case, rollouts: Sequence[Rollout]) -> Spend:
        """The most that it can cost to have the ancestor read ``rollouts``. Its tokens are priced as the sampler's."""
        prompt = self._prompt_tokens(case, case.step.messages)
        read = sum(prompt + len(x.text.encode(errors="replace")) for x in rollouts)
        calls = len(rollouts) * getattr(self.scorer, "max_calls", 1)
        return self.spend(Usage(read, 0, calls), seconds=_INSTANT)

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


def _tells(notify: object) -> bool:
    return isinstance(notify, Notifier) or callable(notify)


_NAMES = tuple(f.name for f in fields(Recovery))
