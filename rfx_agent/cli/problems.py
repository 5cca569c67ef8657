"""Reasoning problems, generated from a seed, with their answers.

They come in three kinds on purpose: arithmetic that a small model cannot carry in its head but can program, problems
that it gets right now and then, and problems that neither more draws nor a program of its own easily solve.
"""

from __future__ import annotations

import datetime
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from rfx_agent.records import Step
from rfx_agent.verifiers.answers import extract_answer

__all__ = ["Problem", "problems", "stated"]

_ASK = " Show the key calculation in one or two short lines, then put your final answer within \\boxed{}."
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_STATED = re.compile(rf"-?\d[\d,]*(?:\.\d+)?|\b(?:{_DAYS})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        family: its generator.
        question: what is asked.
        answer: the correct answer, computed with the question.
    """

    family: str
    question: str
    answer: str

    def step(self, number: int) -> Step:
        """The step that asks it."""
        return Step.of(self.question + _ASK, expected=self.answer, id=f"{self.family}-{number}")


def stated(text: str) -> str | None:
    """The answer that a completion states: the last number or day of what it marks as its answer, else of the text.

    The spelling of a right answer is no failure: what fails here fails for its content.
    """
    marked = extract_answer(text)
    for part in (marked, text):
        if part and (found := _STATED.findall(part)):
            return str(found[-1]).rstrip(",.")
    return marked


def _product(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(120, 989), rng.randint(112, 987)
    return f"What is {a} times {b}?", a * b


def _sum(rng: random.Random) -> tuple[str, int]:
    terms = [rng.randint(1_200, 98_000) for _ in range(5)]
    return f"What is {' + '.join(map(str, terms))}?", sum(terms)


def _mixed(rng: random.Random) -> tuple[str, int]:
    a, b, c, d, e = (rng.randint(13, 98) for _ in range(5))
    return f"Compute {a} * {b} + {c} * {d} - {e}.", a * b + c * d - e


def _power(rng: random.Random) -> tuple[str, int]:
    base, exponent = rng.randint(3, 13), rng.randint(4, 7)
    return f"What is {base} to the power of {exponent}?", base**exponent


def _remainder(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(10_000, 99_999), rng.randint(13, 97)
    return f"What is the remainder when {a} is divided by {b}?", a % b


def _divisor(rng: random.Random) -> tuple[str, int]:
    common = rng.randint(4, 36)
    a, b = common * rng.randint(7, 40), common * rng.randint(7, 40)
    return f"What is the greatest common divisor of {a} and {b}?", math.gcd(a, b)


def _shop(rng: random.Random) -> tuple[str, int]:
    price, count, paid = rng.randint(3, 12), rng.randint(4, 9), rng.choice((100, 150, 200))
    question = (
        f"A notebook costs {price} dollars. Mia buys {count} notebooks and pays with {paid} dollars. "
        "How many dollars does she get back?"
    )
    return question, paid - price * count


def _letters(rng: random.Random) -> tuple[str, int]:
    words = rng.sample(("banana", "committee", "mississippi", "assessment", "parallel", "onomatopoeia"), 2)
    letter = rng.choice(sorted(set(words[0]) & set("aeilmnpst") | {words[0][0]}))
    text = " ".join(words)
    return f'How many times does the letter "{letter}" occur in "{text}"?', text.count(letter)


def _weekday(rng: random.Random) -> tuple[str, str]:
    day = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randint(0, 700))
    later = rng.randint(40, 400)
    name = (day + datetime.timedelta(days=later)).strftime("%A")
    return f"{day.isoformat()} is a {day:%A}. Which day of the week is it {later} days later?", name


def _equation(rng: random.Random) -> tuple[str, int]:
    x, a, c = rng.randint(-19, 19), rng.randint(3, 19), rng.randint(2, 15)
    a += a == c
    b = rng.randint(-99, 99)
    return f"Solve for x: {a}*x + ({b}) = {c}*x + ({(a - c) * x + b}). What is x?", x


FAMILIES: dict[str, Callable[[random.Random], tuple[str, int | str]]] = {
    "product": _product,
    "sum": _sum,
    "shop": _shop,
    "mixed": _mixed,
    "equation": _equation,
    "power": _power,
    "remainder": _remainder,
    "weekday": _weekday,
    "divisor": _divisor,
    "letters": _letters,
}


def problems(count: int, seed: int) -> list[Problem]:
    """``count`` problems, the families in turn; the same for the same seed."""
    names = list(FAMILIES)
    made = []
    for i in range(count):
        family = names[i % len(names)]
        question, answer = FAMILIES[family](random.Random(f"{seed}:{i}"))  # noqa: S311  # problems, not secrets
        made.append(Problem(family, question, str(answer)))
    return made
