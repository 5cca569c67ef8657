"""What a statement of an answer says: without its remarks, in its other readings, and whether it is taken back.

Pure Python, linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rfx_agent.verifiers.forms import number, unwrapped

__all__ = ["DENIES", "denied", "objects", "plain", "signed", "withdrawn", "without_remark"]

_WORDS = re.compile(r"[^\W_]+")
_MARKS = "*`\u2705\u2714\u2713\ufe0f\U0001f389"
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]{1,200}?)(?<!\s)\*\*(?![\w(*])")
_HTML = re.compile(r"<(b|i|em|strong|u|code|mark|span)>([^<>]*)</\1>", re.IGNORECASE)
_UNDERLINED = re.compile(r"(_{1,2})([^_\s]+)\1")
_REMARK = re.compile(
    r"\.\s+(?=[A-Z\u201c\"(])|\s+(?=\(?(?:because|since|as in|i\.e\.|where each|which is the|so the)\b)"
    r"|,\s(?=(?:because|since|which)\b)|\s[\u2014\u2013-]\s(?=(?:because|since)\b)"
    r"|\s[\u2014\u2013]\s|\s\((?=(?:since|because|as|i\.e\.|from|rounded|see|using)\b)|;\s(?=[a-z]{2})"
)
_ABBREVIATED = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Ste|Prof|Jr|Sr|Mt|Ft|Gen|Col|Lt|Sgt|Capt|Rev|Hon|Sen|Rep|Gov|Pres|No|vs|Inc|Ltd|Corp|Bros)"
    r"|(?:\b[A-Z]\.)+[A-Z]|\s[A-Z]|\A[G-Z])\Z"
)
_INITIAL = re.compile(r"[A-Z]\.\s")
_CHANGES = re.compile(
    r"\d|\\|\b(?:wait|no|not|actually|wrong|incorrect|or|but|however|unless|instead|rather|except|should|mistake)\b|n't\b",
    re.IGNORECASE,
)
_HOPE = re.compile(r"I hope (?:it|this) is correct|I apologi[sz]e for the repetition", re.IGNORECASE)
_INTERJECTION = (
    r"(?:but|however|no|nope|oops|wait|sorry|actually|correction|hold on|hang on|hmm+|on second thought|apologies"
    r"|my mistake|unfortunately|i (?:now )?(?:realize|think|see|notice)(?: that)?)"
)
_IT = (
    r"(?:(?:this|that|it|the above"
    r"|(?:this|that|the|my)(?: above| final| last)? (?:answer|result|value|solution)(?: above)?)"
)
_RETRACTS = re.compile(
    rf"\W{{0,6}}(?:{_INTERJECTION}\W{{1,3}}){{0,3}}(?:(?P<at_once>oops|correction|scratch that|scrap that|strike that"
    rf"|nope|(?:edit|update|revis(?:ed|ion))(?=\W{{0,3}}:)|{_IT}(?:(?:'s| is| was| seems| looks)(?: clearly| actually)?"
    r" (?:wrong|incorrect|not (?:right|correct)|mistaken|false|an? (?:mistake|error))(?! to\b)"
    r"|(?:(?: does|n't| not| look| seem)+| can(?:'t|not) be| isn't) (?:right|correct)))"
    r"|i (?:was|am) (?:wrong|mistaken)|i(?:'ve| have)? made an? (?:\w+ )?(?:mistake|error)"
    r"|let me (?:correct|fix|revise)|(?:disregard|ignore|forget) (?:this|that|it|the above|my))|wait|no|hold on|hmm+"
    r"|actually|sorry|hang on|on second thought|apologies|my mistake)\b",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\b(?:wrong|incorrect|mistaken?|errors?|not (?:right|correct)|miscalculated|misread|miscounted|misunderstood"
    r"|overlooked|forgot|should (?:be|have been)|ought to be|i meant|that's off|instead|scratch|scrap)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\b(?:no|not a|without) (?:mistakes?|errors?)\b|\bnot (?:wrong|incorrect|mistaken)\b", re.IGNORECASE
)
_CORRECTED = re.compile(
    rf"(?:{_INTERJECTION}[\s,:.!]{{1,4}}){{0,3}}(?:it(?:'s| is)|that's|i meant|make (?:that|it))?"
    r"[\s*$`]{0,5}(-?\d[\d,.]*)[\s*$`]{0,5}(?:[.!)]|\n|\Z)",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\\(?:text(?:bf|rm)?|math(?:rm|bf))\s?\{\(?([A-J])[).]{0,2}\s?\}[\s\\~]*|(?:option|choice)?\s?\(?\b([A-J])\)\s*"
    r"|(?:option|choice)?\s?\b([A-J])[.:]\s+(?=\S)|(?:option|choice)\s([A-J])\b",
    re.IGNORECASE,
)
_IS = re.compile(r"\s(?:is|are|was|equals|will be|would be)(?:\s?:)?\s+", re.IGNORECASE)
_ASIDE = re.compile(r";|\s\(|,\s|^\W*[^\s.]+(?:\s[^\s.]+)?\.\s")  # what follows may be said of something else
_ADVERBIAL = re.compile(
    r"(?:so|thus|hence|therefore|then|consequently|finally|overall|altogether|now|here|in|after|for|with|by|since|as|from"
    r"|using|at|on|of|because|when|given)\b[^,]*,\s",
    re.IGNORECASE,
)
_ENCLOSED = re.compile(r"\([^()]*\)|\$[^$]*\$")
_NOT_IT = re.compile(
    r"(?:\b(?:not|never|cannot|neither)|n't)[^\w.?!]+(?:(?:be|been|equals?|to|the|answer|really|actually|simply|exactly|is)[^\w.?!]+){0,3}\Z"
    r"|(?<!no )\bdoubts?[^\w.?!]+(?:(?:that|it|the|answer|result|is|be|very|much)[^\w.?!]+){0,6}\Z",
    re.IGNORECASE,
)
_IS_NOT = re.compile(
    r"[\s$.,)*]{0,5}(?:(?:is|was|would be|seems)\s(?:wrong|incorrect|not (?:the|a|an|correct|right|our|valid|it)\b"
    r"|false|invalid|impossible|too (?:big|small|large|high|low))|\?\s*(?:no|wrong|nope|not)\b)",
    re.IGNORECASE,
)
_SIGNED = re.compile(
    r"(?:\\(?:neq?|leq?|geq?|lt|gt|sqrt|cdot|times|pm|not)(?![A-Za-z])|(?<=[^\s=-])\s?[<>]|[≠≤≥√±×·*/^]|(?<=[=(])\s?[-\u2212]|[-\u2212](?=\Z)"
    r"|\\[dt]?frac\s?\{[^{}]{1,20}\}(?=\s?\{))\s?[\s{$]{0,3}\Z"
)
_RAISED = re.compile(r"\s?\}?\s?(?:\^|\\cdot|\\times|[*/]|\+\s?\d)")
DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|or|if|unless|either|maybe|perhaps|might|wrong|incorrect|"
    r"doubts?|wonder|whether|suppose|assume|guess|unlikely|false|but|except|prove|show that|asks?|asked|claims?)\b"
    r"|n't\b",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """``text`` without the marks of Markdown and HTML, and the ticks, that stand around it or its parts."""
    text = text.strip()
    for _ in range(4):
        bare = text
        if "**" in bare:
            bare = _BOLD.sub(r"\1", bare)
        bare = bare.strip(_MARKS).strip()
        if bare.endswith((".*", ".**")) or (bare.endswith(".") and bare[:-1].endswith(("*", "`"))):
            bare = bare.rstrip(".*` ")
        if html := _HTML.fullmatch(bare):
            bare = html[2].strip()
        if (under := _UNDERLINED.fullmatch(bare)) and number(under[2]) is not None:
            bare = under[2]  # a name keeps its underscores
        if bare == text:
            break
        text = bare
    return text


def without_remark(answer: str) -> str:
    """``answer`` without the sentence or the reason that follows it; whole where that might change the answer."""
    for cut in _REMARK.finditer(answer, 0, 2000):
        before = answer[max(0, cut.start() - 12) : cut.start()]
        if cut[0].startswith(".") and (_ABBREVIATED.search(before) or _INITIAL.match(answer, cut.end())):
            continue
        head, rest = answer[: cut.start()].strip(), answer[cut.end() :]
        reason = cut[0].strip() in ("", ",", "(") or rest.startswith(("because", "since"))
        if head and (reason or _HOPE.match(rest) or not _CHANGES.search(rest, 0, 160)):
            return plain(head)
        return answer
    return answer


def objects(statement: str) -> Iterator[str]:
    """Other readings of a statement: what a sentence says of its subject; the letter of a choice, and its text."""
    statement = statement[:400]
    bare = unwrapped(plain(statement))
    if (choice := _CHOICE.match(bare)) and not _CHOICE.search(bare, choice.end()):
        yield next(x for x in choice.groups() if x)
        if len(rest := bare[choice.end() :].strip(" \\~")) > 1 or rest.isdigit():
            yield rest
    begin = max((m.end() for m in _IS.finditer(statement)), default=0)
    if begin and len(_WORDS.findall(statement[:begin])) > 1 and not DENIES.search(statement):
        subject = _ENCLOSED.sub("", statement[:begin])
        if not _ASIDE.search(_ADVERBIAL.sub("", subject, count=1) if _ADVERBIAL.match(subject) else subject):
            yield plain(statement[begin:].strip().rstrip("."))


def denied(before: str, after: str) -> bool:
    """Whether the words right before or behind a marked answer say that it is none."""
    return bool(_NOT_IT.search(before[-80:]) or _IS_NOT.match(after[:60]))


def signed(before: str, answer: str, after: str) -> str:
    """``answer`` of a box with the sign that stands at it and changes it: the minus of ``-\\boxed{7}``. A blank that is
    filled in, ``3 \\cdot \\boxed{7} = 21``, stays as it is."""
    if "=" in after.partition("\n")[0][:60]:
        return answer
    sign = _SIGNED.search(before.rpartition("\n")[2][-40:])
    if sign is None:
        return f"{answer}^" if _RAISED.match(after[:10]) else answer
    return f"{sign[0].rstrip(' ${')} {answer}"


def withdrawn(after: str, answer: str) -> bool:
    """Whether what follows ``answer`` takes it back: its next sentences, or another number in its place."""
    after = after.strip()
    begins = _RETRACTS.match(after)
    if begins is None:
        return False
    if (other := _CORRECTED.match(after.lstrip("*_# ("))) is not None and number(other[1].rstrip(".,")) != number(
        answer
    ):
        return True
    if begins["at_once"]:
        return True
    said = " ".join(re.split(r"(?<=[.!?])\s+|\n\n", after, maxsplit=2)[:2])
    return bool(_WRONG.search(_RIGHT.sub("", said)))
