"""One problem of a collection."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from rfx_agent.errors import ConfigError
from rfx_agent.ports import Verifier
from rfx_agent.records import Message, Step

__all__ = ["NUMBER", "Problem", "is_number"]

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem to collect failures of.

    Attributes:
        id: unique within a collection.
        messages: the prompt, in OpenAI's chat format.
        generator: what made it: the ``task`` of the failure profile.
        expected: the right answer, for the verifier only.
        verifier: judges its rollouts; the plan's by default.
        step: the same as the engine's step.
    """

    id: str
    messages: tuple[Message, ...]
    generator: str = "problems"
    expected: Any = field(default=None, repr=False)
    verifier: Verifier | None = None
    step: Step = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.id or not self.generator:
            raise ConfigError(f"problem: id is {self.id!r} and generator {self.generator!r}; give both a name")
        object.__setattr__(self, "step", Step(self.messages, expected=self.expected, id=self.id))

    def body(self, verifier: Verifier | None = None) -> dict[str, Any]:
        """What identifies it, as plain JSON; ``verifier`` judges it where it brings none."""
        judge = self.verifier or verifier
        body = {
            "id": self.id,
            "generator": self.generator,
            "messages": [dict(message) for message in self.messages],
            "expected": self.expected,
            "verifier": None if judge is None else judge.name,
        }
        plain: dict[str, Any] = json.loads(json.dumps(body, default=str))
        return plain


def is_number(answer: object) -> bool:
    """Whether a right answer is a plain number, so that a unit beside one is no part of the answer."""
    return NUMBER.fullmatch(str(answer).strip()) is not None
