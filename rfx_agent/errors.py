"""Every exception that rfx_agent raises on purpose.

    RfxError
    ├── ConfigError            a parameter that cannot work, found when the object is made
    │   ├── StateError         a checkpoint or record that this version cannot read
    │   └── TokenizerMismatch  two models whose token ids do not mean the same; refused before any scoring
    ├── FeatureError           token data that breaks its contract; names the rollout and the position
    ├── CalibrationError       population statistics that cannot be read, merged or used
    ├── BudgetExhausted        a reservation that the budget cannot pay for; names the caps
    ├── StoreError             a shared budget's store could not be reached
    ├── SamplerError           a model could not be sampled
    │   ├── SamplerTimeout     it did not answer in time
    │   └── CircuitOpen        it failed too often and is not asked for a while
    ├── VerifierError          a verifier broke; the rollout it was judging is kept
    ├── ToolError              a tool broke in a way that is ours, not the program's
    │   └── ToolInputError     the model wrote nothing that the tool can run
    ├── EscalationError        a human's reply that does not fit what was asked
    ├── NotifyError            nobody could be told that a case waits for a person
    ├── Unresolved             a wrapped chain has no answer to return; the whole case is kept
    └── WeightsError           model weights could not be had
        └── WeightsCorrupt     they are there and their hash is wrong

A verifier that says no, a program that fails and a budget that ends are data, not exceptions: they are routes.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "BudgetExhausted",
    "CalibrationError",
    "CircuitOpen",
    "ConfigError",
    "EscalationError",
    "FeatureError",
    "NotifyError",
    "RfxError",
    "SamplerError",
    "SamplerTimeout",
    "StateError",
    "StoreError",
    "TokenizerMismatch",
    "ToolError",
    "ToolInputError",
    "Unresolved",
    "VerifierError",
    "WeightsCorrupt",
    "WeightsError",
    "is_control_flow",
    "may_have_worked",
]


class RfxError(Exception):
    """Base of every exception of this package. Copies and pickles keep its attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew without ``__init__``, which takes more than the message."""
        return _made, (type(self), self.args), self.__dict__


def _made(kind: type[RfxError], args: tuple[Any, ...]) -> RfxError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(RfxError, ValueError):
    """A parameter that cannot work: the message names it, the value received and the remedy."""


class TokenizerMismatch(ConfigError):
    """Two models whose token ids do not mean the same, so that their probabilities cannot be compared."""


class StateError(ConfigError):
    """A checkpoint or record that this version cannot read: the message names the place and what stands there."""


class FeatureError(RfxError, ValueError):
    """Token data that breaks its contract.

    Attributes:
        rollout: index of the rollout in the batch, or ``None`` when only one was given.
        position: token position within the rollout, or ``None`` when the fault is of the whole rollout.
    """

    def __init__(self, message: str, *, rollout: int | None = None, position: int | None = None) -> None:
        self.rollout = rollout
        self.position = position
        place = ", ".join(
            f"{name} {value}" for name, value in (("rollout", rollout), ("position", position)) if value is not None
        )
        super().__init__(f"{message} (at {place})" if place else message)


class CalibrationError(RfxError, ValueError):
    """Population statistics that cannot be read, merged or used."""


class BudgetExhausted(RfxError):
    """A reservation that the budget cannot pay for.

    Attributes:
        caps: names of the caps that would be crossed, in the order of ``RetryBudget``'s fields.
        accounts: names of the shared accounts that have no room, where it is these.
        spent: what the run has spent, a ``Spend``; None where it is not a run's budget.
        by_model: the part of it that went to models, a ``Spend`` by the model's name.
        after: seconds until there may be room, as for ``Retry-After``; None where time alone does not help.
        best: the text of the best answer so far, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        caps: tuple[str, ...],
        accounts: tuple[str, ...] = (),
        spent: Any = None,
        by_model: Any = None,
        after: float | None = None,
        best: str | None = None,
    ) -> None:
        self.caps = caps
        self.accounts = accounts
        self.spent = spent
        self.by_model = by_model or {}
        self.after = after
        self.best = best
        super().__init__(message)


class SamplerError(RfxError):
    """A model could not be sampled; the provider's exception is chained.

    Attributes:
        status: HTTP status where there was one.
        transient: whether the same request may succeed later.
        calls: requests that reached the server before this was raised.
        lost: of these, the ones that the server may have worked on; None if unknown.
        usage: what all of them used, a ``Usage`` with the lost requests as they are estimated; None if it is unknown.
    """

    usage: Any = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        transient: bool = False,
        calls: int = 0,
        lost: int | None = None,
    ) -> None:
        self.lost = lost
        self.status = status
        self.transient = transient
        self.calls = calls
        super().__init__(message)


class SamplerTimeout(SamplerError, TimeoutError):
    """A model did not answer in time."""


class CircuitOpen(SamplerError):
    """A model failed too often and is not asked for a while; nothing was sent.

    Attributes:
        seconds: until it is asked again.
    """

    def __init__(self, message: str, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(message, transient=True)


class StoreError(RfxError):
    """A shared budget's store could not be reached, or is not what this version writes; its exception is chained."""


class VerifierError(RfxError):
    """A verifier broke while judging; its exception is chained and the rollout is kept.

    Attributes:
        rollout: the ``Rollout`` that was being judged.
    """

    def __init__(self, message: str, *, rollout: Any) -> None:
        self.rollout = rollout
        super().__init__(message)


class ToolError(RfxError):
    """A tool broke in a way that is not the fault of what the model wrote."""


class ToolInputError(ToolError, ValueError):
    """The model wrote nothing that the tool can run."""


class EscalationError(RfxError, ValueError):
    """A human's reply that does not fit what was asked."""


class NotifyError(RfxError):
    """Nobody could be told that a case waits for a person; the case waits all the same."""


class Unresolved(RfxError):
    """A wrapped chain has no answer to return.

    Attributes:
        case: the ``Case``, with everything that was tried and its ``outcome``.
    """

    def __init__(self, message: str, *, case: Any) -> None:
        self.case = case
        super().__init__(message)


class WeightsError(RfxError, OSError):
    """Model weights could not be had: the message says what to do."""


class WeightsCorrupt(WeightsError):
    """A weights file whose SHA-256 is not the one expected."""


def is_control_flow(error: BaseException) -> bool:
    """Whether ``error`` steers LangGraph and must pass through.

    That is an interrupt, a reply to one that was refused, a parent command, or a drain.

    LangGraph is looked up, not imported: if it was never loaded, nothing can have raised its exceptions.
    """
    errors = sys.modules.get("langgraph.errors")
    if errors is None:
        return False
    refused = getattr(errors, "is_invalid_resume", None)  # since LangGraph 1.2
    return isinstance(error, errors.GraphBubbleUp) or (refused is not None and bool(refused(error)))


# Of the statuses of a server's own errors, those that say that the request was not worked on: not implemented,
# unavailable, HTTP version, out of space, overloaded.
_IDLE = frozenset({501, 503, 505, 507, 529})


def may_have_worked(status: int | None) -> bool:
    """Whether a request that brought nothing may have been worked on, and billed: there was no status, or one of a
    server or a gateway that broke or ran out of time in the middle.

    Example:
        >>> may_have_worked(None), may_have_worked(504), may_have_worked(503), may_have_worked(429)
        (True, True, False, False)
    """
    return status is None or status == 408 or (status >= 500 and status not in _IDLE)
