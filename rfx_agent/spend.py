"""What model calls used, and what actions cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from rfx_agent.checks import shown
from rfx_agent.errors import ConfigError

__all__ = ["MOST_USED", "Spend", "Usage", "text_tokens"]

MOST_USED = 2**40
"""Tokens that a usage is bounded by: more than all models together write in a year."""

# Low on purpose: better to charge a budget too much than too little. Bytes, for a character of Chinese is a token.
_BYTES_PER_TOKEN = 3


def text_tokens(size: int) -> int:
    """Estimate the tokens of a text of ``size`` bytes, where no server counted them.

    Example:
        >>> text_tokens(15)
        5
    """
    return -(-size // _BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and requests that model calls used.

    Attributes:
        prompt_tokens: tokens read.
        completion_tokens: tokens written, over all choices.
        calls: requests that reached the server, transport retries included.

    Raises:
        ConfigError: an amount is negative or not a number. One above ``MOST_USED`` becomes ``MOST_USED``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "completion_tokens", "calls"):
            value = getattr(self, name)
            if type(value) is int and 0 <= value <= MOST_USED:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ConfigError(f"usage: {name} is {shown(value)}; give a whole number of at least 0")
            # A part of a token is paid as one; no price and no store can take more than the bound.
            object.__setattr__(self, name, MOST_USED if value > MOST_USED else math.ceil(value))

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
        )


@dataclass(frozen=True, slots=True)
class Spend:
    """An amount of everything that a budget caps; also the price of one action.

    Attributes:
        attempts: candidate answers produced to be judged (rollouts, tool results, steered decodes).
        samples: completions asked of a model, programs for the tool included.
        tokens: tokens read and written.
        usd: money, in US dollars.
        seconds: wall-clock seconds of work; a human's waiting time is not work.
        tool_seconds: seconds inside tools.
        escalations: cases put before a person.
        calls: requests that reached a server, transport retries included.
        asked: requests that the engine asked for; with ``calls`` the amplification. Reported, never capped.
    """

    attempts: int = 0
    samples: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    tool_seconds: float = 0.0
    escalations: int = 0
    calls: int = 0
    asked: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            self.attempts + other.attempts,
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.seconds + other.seconds,
            self.tool_seconds + other.tool_seconds,
            self.escalations + other.escalations,
            self.calls + other.calls,
            self.asked + other.asked,
        )

    def __sub__(self, other: Spend) -> Spend:
        return Spend(
            self.attempts - other.attempts,
            self.samples - other.samples,
            self.tokens - other.tokens,
            self.usd - other.usd,
            self.seconds - other.seconds,
            self.tool_seconds - other.tool_seconds,
            self.escalations - other.escalations,
            self.calls - other.calls,
            self.asked - other.asked,
        )

    def times(self, n: int) -> Spend:
        """This amount ``n`` times over."""
        return Spend(
            self.attempts * n,
            self.samples * n,
            self.tokens * n,
            self.usd * n,
            self.seconds * n,
            self.tool_seconds * n,
            self.escalations * n,
            self.calls * n,
            self.asked * n,
        )

    def amounts(self) -> dict[str, float]:
        """The amounts that are not 0, by name.

        Example:
            >>> Spend(tokens=90, calls=1).amounts()
            {'tokens': 90, 'calls': 1}
        """
        return {x.name: amount for x in fields(self) if (amount := getattr(self, x.name))}

    @classmethod
    def read(cls, amounts: object) -> Spend:
        """What ``amounts`` wrote. Names that a later version added are left out; what is not a mapping is nothing."""
        if not isinstance(amounts, Mapping):
            return cls()
        return cls(**{x.name: amounts[x.name] for x in fields(cls) if x.name in amounts})

    def tried(self, n: int) -> Spend:
        """This amount for a call that was tried ``n`` times: its tokens and its money ``n`` times over."""
        return replace(self, tokens=self.tokens * n, usd=self.usd * n)
