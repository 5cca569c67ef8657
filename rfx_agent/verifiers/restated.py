"""Whether an answer is the question's own expression, given back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from rfx_agent.records import Step
from rfx_agent.verifiers.tidy import tidy

__all__ = ["restates", "unchanged", "unworked"]

_TOKENS = re.compile(r"\d+(?:\.\d+)?|\\?[A-Za-z]+|[^\s\w]")
_SAME = {
    "\\times": "*",
    "\\cdot": "*",
    "x": "*",
    "\\div": "/",
    "times": "*",
    "plus": "+",
    "minus": "-",
    "divided": "/",
    "[": "(",
    "]": ")",
    "{": "(",
    "}": ")",
    "\\frac": "/",
}
_FUNCTIONS = frozenset({"\\sqrt", "\\log", "\\ln", "\\sin", "\\cos", "\\tan", "\\exp", "\\binom"})
_PLAIN = re.compile(r"[-+]?[\d,. ]*")
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")
_SUM = re.compile(r"[\d.\s()+-]*\d[\s)]*(?:[+*-]|\\times|\\cdot|(?<=\))\()(?:[\d.\s()+*-]|\\times|\\cdot)*")
_FORM = re.compile(
    r"\b(?:convert|express|rewrite|write|reduce|simplify|round|put|change|give)\b.{0,200}?\b(?:as|in|to|into)\b|"
    r"\b(?:as|in|into) an? (?:\w+ )?(?:decimal|fraction|percent|percentage|ratio|mixed number)\b",
    re.IGNORECASE | re.DOTALL,
)
_ASKED = 20_000  # characters of the question that are looked at


def restates(step: Step, answer: str) -> bool:
    """Whether the messages of ``step`` hold the expression ``answer``, its terms in any order.

    A number alone, or a name, restates nothing: many a question names its answer.
    """
    mine = _tokens(answer)
    operators = sum(x in "+-*/^!" or x in _FUNCTIONS for x in mine)
    if not operators or len(mine) < 2 or (len(mine) < 3 and mine[0] in "+-") or _PLAIN.fullmatch(answer.strip()):
        return False
    return any(_holds(_tokens(text), mine) for text in _asked(step))


def unworked(step: Step, answer: str) -> bool:
    """Whether ``answer`` only writes the question's numbers as a sum or product, as "3 + 4" does for "add 3 and 4"."""
    text = tidy(answer)
    if not _SUM.fullmatch(text):
        return False
    mine = Counter(_NUMBERS.findall(text))
    return mine.total() > 1 and any(mine <= Counter(_NUMBERS.findall(asked)) for asked in _asked(step))


def unchanged(step: Step, gold: str, answer: str) -> bool:
    """Whether a number in another form is asked for and ``answer`` is the number as it was given."""
    mine, wanted = "".join(tidy(answer).split()), "".join(tidy(gold).split())
    if mine == wanted or not re.fullmatch(r"-?[\d.,/%]+", mine):
        return False
    for asked in _asked(step):
        if _FORM.search(asked[:2000]):
            numbers = {x.rstrip(".,") for x in re.findall(r"-?[\d.,/%]+", tidy(asked))}
            if mine in numbers and wanted not in numbers:
                return True
    return False


def _asked(step: Step) -> Iterator[str]:
    for message in step.messages:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str) and message.get("role") != "assistant":
                yield text[:_ASKED]


def _tokens(text: str) -> list[str]:
    made = [_SAME.get(x, x) for x in _TOKENS.findall(tidy(text))]
    return [x for x in made if x not in ("(", ")", "?", ".", "$", "by")]


def _holds(text: list[str], mine: list[str]) -> bool:
    wanted, window = Counter(mine), Counter(text[: len(mine)])
    if window == wanted:
        return True
    for at in range(len(mine), len(text)):
        out = text[at - len(mine)]
        window[text[at]] += 1
        window[out] -= 1
        if not window[out]:
            del window[out]
        if window == wanted:
            return True
    return False
