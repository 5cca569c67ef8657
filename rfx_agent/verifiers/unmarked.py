"""The answer of a text that marks none: what its end says, where that is mathematics and said without reserve."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rfx_agent.verifiers.amounts import amount
from rfx_agent.verifiers.answers import Found
from rfx_agent.verifiers.tidy import mathematical, tidy, words_of
from rfx_agent.verifiers.units import unit_of

__all__ = ["reads", "unmarked"]

_END = 1500  # characters at the end of a text in which an answer is looked for
_LINE = 300
_RESERVE = re.compile(
    r"\b(?:not|no|never|neither|nor|or|if|unless|either|maybe|perhaps|might|wrong|incorrect|guess|unsure|instead|wait|"
    r"but|cannot|doubts?|wonder|whether|suppose|assum(?:e|es|ed|ing)|unlikely|false|let|try|trying|tries|test|testing|"
    r"fails?|failed|check(?=\s\S{1,12}\s?=)|(?:for|when|if)(?=\s\S{1,12}\s?=)|impossible|prove|show\sthat|given(?=\s(?:that\b|\S{1,4}\s(?:=|is\b)))|say|recall|remember|need|until|almost|nearly)\b"
    r"|n't\b|\?\Z",
    re.IGNORECASE,
)
_SAYS = re.compile(
    r"(?:(?:\b(?:is|are|was|equals?|gives?|give us|get|obtain|yields?|have|has|there are|there is|be|solutions?"
    r"|makes?|made|earn(?:s|ed)?|costs?|pa(?:ys|id)|spen(?:ds|t)|takes?|took|needs|weighs?|remains?"
    r"|which is|given by|arrived? at|(?:increases?d?|decreases?d?|grows?|rises?|drops?) by"
    r"|(?:equal|simplif(?:y|ies)|comes|amounts|reduces|evaluates|converges|tends|sums|adds up|leads|works out|rounds)"
    r"\sto"
    r"|(?:total|sum|value|area|volume|length|cost|price|probability|maximum|minimum|profit|distance|speed|average|mean"
    r"|number|result|answer|solution) of)\b)(?:\s(?:exactly|about|approximately|then|simply|just))?\s?:?"
    r"|(?<!\d)[:](?=[\s$*\\])|(?<![!<>=])=(?!=)|\\Rightarrow|⇒|→|=>)\s*",
    re.IGNORECASE,
)
_EQUATION = re.compile(
    r"(?<![\w^_{])\d+\s?[A-Za-z](?![A-Za-z])|[A-Za-z)]\s?[+*-]\s?\d"
)  # 2x + 4, of a relation still open
_CALLED = re.compile(r"\\?[A-Za-z]+'?(?:_(?:\w+|\{[^{}]{1,10}\}))?\s?(?:\([^()]{0,20}\))?|\\[A-Za-z]+\s?[A-Za-z]")
_LEADS = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|then|finally|now|and|we|get|have)\b[,:]?\s*){0,4}", re.IGNORECASE
)
_BREAK = re.compile(r"\s(?:is|are|so|get|have|that|then|gives|us|thus|hence|where|and)\b:?\s*|[,:;]\s|\$|\\\(|\.\s")
_LEAD = re.compile(r"(?:so|thus|hence|therefore|then|finally|in total|overall|altogether)\b,?\s+", re.IGNORECASE)
_COUNT = re.compile(
    r"\bthere (?:are|is|were|will be) (?:exactly |only |a total of )?(\d[\d,]*)(?= [a-z]{3,})"
    r"(?! (?:more|less|fewer|and|to|times|dozen|hundred|thousand|million|billion|percent|out|or)\b)",
    re.IGNORECASE,
)
_TRAILER = re.compile(
    r"<\|[a-z_]{2,20}\|>[a-z]{0,10}\s*|I hope (?:it|this) is correct\.?\s*|[\u2705\u2713\u2714\ufe0f\s]+", re.IGNORECASE
)
_SPAN = re.compile(r"\$\$?([^$\n]{1,200})\$\$?|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]", re.DOTALL)


def unmarked(said: str) -> Iterator[Found]:
    """What the end of ``said`` may be saying, likeliest first: the block of mathematics or the line at its end, else
    the object of its last sentence, else the one formula in it. Nothing where that sentence is said with a reserve."""
    end = said[-_END:].rstrip()
    for _ in range(3):
        trimmed = re.sub(rf"(?:{_TRAILER.pattern})\Z", "", end[-200:], flags=re.IGNORECASE)
        end = end[: max(0, len(end) - 200)] + trimmed
    end = end.rstrip()
    if not end:
        return
    start = len(said) - len(said[-_END:])
    lines = [x for x in end.split("\n") if x.strip()]
    block = re.search(r"(?:\$\$|\\\[)\s*([^$]{1,400}?)\s*(?:\$\$|\\\])\.?\Z", end[-500:])
    if block and "\n" in block[0]:
        yield Found(" ".join(block[1].split()), "end", start)
        return
    last = lines[-1].strip()
    if len(last) > _LINE and len(lines) > 0:
        last = last[-_LINE:]
    if len(lines) > 1 and last.startswith("=") and reads(rest := last[1:].strip("*` .")):
        yield Found(rest, "end", start)
        return
    if len(lines) > 1 and _alone(last):
        if not _alone(lines[-2].strip()):  # several are a guess
            yield Found(last.strip("*` "), "end", start)
        return
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z$\\])", last)[-1].strip()
    if _RESERVE.search(sentence) or (
        "=" not in sentence and reads(re.split(r"[,;.]\s", sentence, maxsplit=1)[0]) and " " in sentence
    ):
        return
    if (lead := _LEAD.match(sentence)) and reads(rest := sentence[lead.end() :].rstrip(".!*` ")):
        yield Found(rest, "end", start)
        return
    if "=" in sentence and len(lines) == 1 and not re.search(r"\d\s?=", sentence) and reads(sentence.strip("*`$. ")):
        return  # a relation alone is no number
    for mark in list(_SAYS.finditer(sentence))[::-1][:4]:
        if mark[0].strip() == "=" and _open(sentence[: mark.start()]):
            return
        rest = sentence[mark.end() :].strip().rstrip(".")
        if rest.endswith("$") and sentence[: mark.end()].count("$") % 2:
            rest = rest[:-1]
        rest = rest.strip("*` ").rstrip(".!").strip("*` ")
        if rest and reads(rest):
            yield Found(rest, "end", start)
            return
    if (count := _COUNT.search(sentence)) is not None:
        yield Found(count[1], "end", start)
        return
    spans = list(_SPAN.finditer(sentence))
    if len(spans) == 1 and unit_of(sentence[spans[0].end() :], attached=False) is None:
        yield Found(next(x for x in spans[0].groups() if x).strip(), "end", start)


def _open(before: str) -> bool:
    """Whether ``before`` ends with the left side of an equation that is still to be solved: 2x + 4, x^2; not x, f(2)
    or 2 + 4, nor x + y, which may be what was asked for."""
    left = _LEADS.sub("", _BREAK.split(before)[-1], count=1).partition("=")[0].strip("*`$ ")
    letters = {*re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", left)}
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", left) or not letters:
        return False
    return _EQUATION.search(left) is not None or (len(letters) == 1 and not _CALLED.fullmatch(left))


def _alone(line: str) -> bool:
    bare = line.strip("*` ").rstrip(".")
    return bool(bare) and reads(bare)


def reads(text: str) -> bool:
    """Whether ``text`` is a number or a formula from end to end."""
    if amount(text) is not None:
        return True
    made = words_of(tidy(text))
    return any(c.isdigit() or c == "\\" for c in made) and all(
        mathematical(x) for x in re.split(r"[,;]", made) if x.strip()
    )
