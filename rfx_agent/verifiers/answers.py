"""Where a text states its answer. Pure Python, linear in the length of the text.

The text is a model's and may be anything. Nothing here backtracks without bound or recurses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rfx_agent.scan import backward, forward
from rfx_agent.verifiers.forms import canonical, number
from rfx_agent.verifiers.statements import DENIES, denied, objects, plain, signed, withdrawn, without_remark

__all__ = [
    "Found",
    "Place",
    "bare_answer",
    "canonical",
    "extract_answer",
    "find_answer",
    "number",
    "stated_answer",
    "unclaimed",
]

Place: TypeAlias = Literal["line", "box", "tag", "hash", "code", "json", "bare", "end"]
"""Where an answer was found: a marked line, a box, a tag, ``####``, a code block alone, a key of JSON, the whole text,
or its end."""

_BARE = 200  # longest text that is taken for an answer when it states none
_BLOCK = 4000  # longest answer that spans lines
_READ = 100_000  # characters at the end of a text in which an answer is looked for
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s?\{|\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s?\{")
_UNBRACED = re.compile(r"\\boxed\s{1,3}(-?[^\s{}$.,\\]{1,40})")
_TAGS = re.compile(r"<(/?)(?:final[ _-]?)?answer>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z]{1,6}>")
_WORDS = re.compile(r"[^\W_]+")
_MARK = re.compile(
    r"(?<![^\W_])(?:answers?|ans|final\s(?:result|solution|value)|(?:correct|right|best)\s(?:option|choice)|antwort|r[eé]ponse|respuesta|risposta|resposta|ответ)(?![^\W_])"
    r"|答案|答え|回答|정답",
    re.IGNORECASE,
)
# What may stand between the mark and the answer: an addition, marks of Markdown, and a sign that the answer comes.
_SIGN = re.compile(
    r"(?P<about>\s(?:to|for|of)\s[^:\n.=]{1,80}?|\s?\([\w ]{1,12}\))?(?:[\s*_`\"]|</?[a-z]{1,6}>){0,6}"
    r"(?:(?P<colon>[:\uff1a=]|->|→|⇒|[-\u2013\u2014](?=\s)|\\(?:boxed|fbox)(?=\{))"
    r"|(?P<is>(?:is|are|was|equals|would be|will be|comes to|ist|est|es|è|é|是|は|은|는)"
    r"(?:\s?[:\uff1a])?(?=[\s*$\\]|[^\x00-\x7f]|\d)))(?:[*_`]|</?[a-z]{1,6}>){0,4}",
    re.IGNORECASE,
)
_BEFORE_LIST = """
a and are being believe calculated calc can complete computed conclude conclusion consequently correct desired
exact final finally find for get gives hence here i in is it its last means my now numerical obtain of ok okay
our overall please read required resulting right see short simplified so step summary that the then therefore
think this thus to us we well which with your yes done
sorry actually wait oops hmm correction apologies no great und die das la le el il est die
"""
_BEFORE = frozenset(_BEFORE_LIST.split())
_NO_ANSWER = re.compile(
    r"(?:wrong|incorrect|correct|unclear|not|unknown|below|above|clear|obvious|shown|given|found|obtained|either"
    r"|no longer"
    r"|the (?:same|following)|as follows)\b(?!\s?,)",
    re.IGNORECASE,
)
_RESULT = re.compile(r"\b(?:result|solution|output)(?:\s(?:is|equals|comes to)(?:\s?:)?\s|\s?[:=]\s)", re.IGNORECASE)
_OPENS = re.compile(r"[* ]{0,4}(\$\$|\\\[|```)")
_HEADING = re.compile(r"[\s#*_>\u2705\ufe0f]*\b(?:the\s)?(?:final\s)?(?:answer|result)[\s*_:.]*", re.IGNORECASE)
_OR = re.compile(r"(?:^|[\s,])or(?:\s(?:maybe|perhaps|possibly|else))?\W{0,6}\Z", re.IGNORECASE)
_JOINS = re.compile(r"\\(?:text(?:bf|rm|it)?|mathrm|mbox|quad|qquad|left|right|[()\[\],;!:. ])|[${}()\[\],;~&]")
_NAMED = re.compile(r"(?:\\?[A-Za-z]{1,8}|[A-Za-z]_\{?\w{1,3}\}?)\s?=")  # of "x = \\boxed{2}, y = \\boxed{3}"
_APART_LIST = """
then so now finally not but no wait thus hence therefore gives wrong instead actually which
"""
_APART = frozenset(_APART_LIST.split())
_TURN = re.compile(r"\s*<\|[a-z_]{2,20}\|>")  # the end of a turn that a model wrote out


@dataclass(frozen=True, slots=True)
class Found:
    """An answer and where it was found.

    Attributes:
        text: the answer as it is stated.
        place: the form in which it is stated.
        start: offset in the text at which that form begins.
        others: other readings of the same statement, such as "34" of "the largest n is 34"; never another answer.
    """

    text: str
    place: Place
    start: int
    others: tuple[str, ...] = ()


def find_answer(text: str) -> Found | None:
    """The answer that ``text`` marks as its answer, and where; None where nothing is marked.

    Looked for are a line or sentence ``Answer: X``, ``The final answer is X`` (in any case, Markdown and a few other
    languages tolerated; X may stand in the next line or block), ``\\boxed{X}`` with balanced braces,
    ``<answer>X</answer>``, and ``#### X`` as the last line; failing all of these, a last line that says ``the result is
    X``, or that is emphasised as a whole. A text that is a JSON object with the key ``answer``, or ends with one in a
    code block, states that.

    Only the last 100,000 characters of a text are read. Whichever answer begins last counts, because a model that
    corrects itself does so below. An answer that is withdrawn, with
    none after it, is none, and so is the last of several that "or" joins. Boxes that "and" or a comma joins are one
    answer of several parts; boxes that "or" joins stay a choice, "1 or 2". A box within a stated answer is unpacked,
    and so is a sentence within a tag.

    Example:
        >>> find_answer("Let us see. The answer is **18**.")
        Found(text='18.', place='line', start=16, others=())
    """
    skipped = max(0, len(text) - _READ)
    hit, _ = _marked(text[skipped:])
    if hit is None:
        return None
    begin, _, place, answer = hit
    for _ in range(4):
        if (box := _boxed(answer)) is not None:
            answer, place = box[3].strip(), "box"
        elif place in ("tag", "hash", "json") and (line := _line(answer)) is not None:
            answer = line[3]
        else:
            break
    whole = plain(_TURN.split(answer, maxsplit=1)[0])
    if not whole:
        return None
    head = without_remark(whole)
    others = [x for x in (whole, *objects(head)) if x != head]
    return Found(head, place, skipped + begin, tuple(dict.fromkeys(others)))


def unclaimed(text: str) -> str:
    """Where an answer that nothing marks may stand: all of ``text`` that is read, or what follows an answer that is
    withdrawn; nothing where the marked ones are a choice."""
    text = text[-_READ:]
    hit, begin = _marked(text)
    return text if hit is not None else text[begin:]


def _marked(text: str) -> tuple[_Hit | None, int]:
    """The last hit, where it stands; else None, and where the text begins that no mark speaks for."""
    finders = (_line, _boxed, _tagged, _hash)
    if (last := _keyed(text)) is None:
        hits = [hit for finder in finders if (hit := finder(text)) is not None]
        last = max(hits) if hits else _result(text)
        if last is None:
            return None, 0
        within = [x for x in hits if x[0] < last[0] < x[1] and x[2] in ("box", "tag", "hash")]
        last = min(within) if within else last  # "The answer is 18" in a tag
    begin, end, place, answer = last
    if withdrawn(text[end : end + 600], plain(answer)):
        return None, end
    if place in ("box", "tag") and denied(text[max(0, begin - 80) : begin], text[end : end + 60]):
        return None, end
    if _OR.search(text[max(0, begin - 30) : begin]) and any(finder(text[:begin]) is not None for finder in finders):
        return None, len(text)  # "7, or maybe 8"
    return last, 0


def extract_answer(text: str) -> str | None:
    """The answer that ``text`` marks as its answer, or None; ``find_answer`` says where it stands."""
    found = find_answer(text)
    return None if found is None else found.text


def bare_answer(text: str) -> str | None:
    """A short single line as it is, or what one code block holds: a tool's result is the answer alone. None for
    anything longer."""
    found = alone(text)
    return None if found is None else found.text


def alone(text: str) -> Found | None:
    """The whole text as an answer, where it is short enough to be one."""
    bare, place = text.strip(), "bare"
    if bare.startswith("```") and bare.endswith("```") and len(bare) <= _BARE + 40 and bare.count("```") == 2:
        bare, place = bare[3:-3].partition("\n")[2].strip() or bare[3:-3].strip(), "code"
    if bare and "\n" not in bare and len(bare) <= _BARE:
        return Found(bare, "code" if place == "code" else "bare", text.find(bare), tuple(objects(bare)))
    return None


def stated_answer(text: str) -> str | None:
    """The answer that ``text`` states, else a short single line as it is."""
    return extract_answer(text) or bare_answer(text)


_Hit: TypeAlias = tuple[int, int, Place, str]
"""Where the form begins and ends, which it is, and the answer."""


def _line(text: str) -> _Hit | None:
    """The last mark with an answer; found from the end, so that each mark costs its own line at most once."""
    for mark in backward(_MARK, text, reach=30):
        begin, end = mark.span()
        if not _leads(text, begin) or text[max(0, begin - 1) : begin] == text[end : end + 1] == '"':
            continue  # within a sentence; a key of JSON
        sign = _SIGN.match(text, end, end + 140)
        if sign is None:
            start = text.rfind("\n", max(0, begin - 80), begin) + 1
            line_end = text.find("\n", end, end + 80)
            line = text[start : len(text) if line_end < 0 else line_end] if line_end > 0 or len(text) < end + 80 else ""
            if len(line) > 80 or not _HEADING.fullmatch(line) or not ({*"#*"} & {*line} or "inal" in line):
                continue
            stop, answer = _next_block(text, start + len(line))
        else:
            at = sign.start("colon") if (sign["colon"] or "").startswith("\\") else sign.end()
            while at < len(text) and text[at] in " \t":
                at += 1
            if sign["is"] and _NO_ANSWER.match(text, at):
                continue
            opening = _OPENS.match(text, at)
            stop = _end_of_line(text, at)
            answer = text[at:stop].strip()
            if not plain(answer):
                stop, answer = _next_block(text, stop)
            elif opening and not _closed(answer):
                stop, answer = _block(text, opening.start(1))
        if plain(answer):
            return begin, stop, "line", answer
    return None


def _leads(text: str, at: int) -> bool:
    """Whether what stands before a mark in its sentence only introduces it."""
    before = text[max(0, at - 80) : at].rpartition("\n")[2]
    for stop in (". ", "! ", "? ", ": ", "; ", ":** ", ".** ", ".* "):
        before = before.rpartition(stop)[2]
    words = _WORDS.findall(_TAG.sub(" ", before))
    return len(words) <= 10 and all(
        x.lower() in _BEFORE or x.isdigit() or (not x.isascii() and len(x) < 8) for x in words
    )


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _next_block(text: str, at: int) -> tuple[int, str]:
    """The next line that is not blank, or the display or code block that begins there."""
    begin = at
    while begin < len(text) and text[begin].isspace():
        begin += 1
    if text.startswith(("$$", "\\[", "```"), begin):
        return _block(text, begin)
    end = _end_of_line(text, begin)
    line = text[begin:end]
    return end, "" if _MARK.search(line[:40]) and _SIGN.search(line[:80]) else line


def _block(text: str, begin: int) -> tuple[int, str]:
    opening = "```" if text.startswith("```", begin) else text[begin : begin + 2]
    closing = {"$$": "$$", "\\[": "\\]", "```": "```"}[opening]
    inner = begin + len(opening)
    if opening == "```":
        inner = min(_end_of_line(text, inner) + 1, len(text))
    end = text.find(closing, inner, inner + _BLOCK)
    if end < 0:
        line_end = _end_of_line(text, begin)
        return line_end, text[begin:line_end]
    return end + len(closing), " ".join(text[inner:end].split())


def _closed(answer: str) -> bool:
    bare = answer.lstrip("* ")
    return bare.count("$$") >= 2 or "\\]" in bare or bare.count("```") >= 2


def _boxed(text: str) -> _Hit | None:
    """The box that closes last, with those that it is joined to; one left open hides none."""
    begins = [at for word in ("boxed", "fbox") if (at := text.find(word)) >= 0]
    if not begins:
        return None
    first = next(forward(_BOX, text, reach=10, begin=max(0, min(begins) - 2)), None)
    if first is None:
        bare = None if "\\boxed" not in text else _UNBRACED.search(text, text.rindex("\\boxed"))
        return None if bare is None else (bare.start(), bare.end(), "box", bare[1])
    opened: list[tuple[int, int] | None] = []  # per open brace: where its box and the content begin, or a plain brace
    boxes: list[tuple[int, int, int]] = []  # where one begins, where its content does, and where it ends
    for token in forward(_BRACES, text, reach=10, begin=first.start()):
        kind = token[0]
        if kind == "}":
            if opened and (box := opened.pop()) is not None:
                while boxes and boxes[-1][0] >= box[0]:  # within this one
                    boxes.pop()
                boxes.append((*box, token.end()))
        elif kind == "{":
            opened.append(None)
        elif kind.startswith("\\") and kind.endswith("{") and len(kind) > 2:
            opened.append((token.start(), token.end()))
    if not boxes:
        return None
    begin, inner, end = boxes[-1]
    answer = text[inner : end - 1].strip()
    later = answer
    for one, two in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        joint = _joint(text[one[2] : two[0]]) if two[0] - one[2] <= 60 else None
        if joint is None:
            break
        begin, earlier = one[0], text[one[1] : one[2] - 1].strip()
        if earlier != later:
            answer, later = f"{earlier}{joint}{answer}", earlier
    return begin, end, "box", signed(text[max(0, begin - 40) : begin], answer, text[end : end + 60])


def _joint(between: str) -> str | None:
    """How two boxes belong together: " and ", " or ", or None where they do not."""
    if "\n\n" in between or re.search(r"[.!?]\s", between):
        return None
    words = [x.lower() for x in _WORDS.findall(_JOINS.sub(" ", between))]
    if _APART.intersection(words) or len(words) > 8:
        return None
    if "or" in words:
        return " or "
    bare = _JOINS.sub("", _NAMED.sub("", between)).strip()
    if bare in ("/", "|", "+", "-", "*", ":", "<", ">", "\\cdot", "\\times"):
        return bare
    return " and " if "and" in words or not bare or set(words) == {"&"} else None


def _tagged(text: str) -> _Hit | None:
    start: re.Match[str] | None = None
    best: _Hit | None = None
    for tag in _TAGS.finditer(text):
        if not tag[1]:
            start = tag
        elif start is not None:
            best, start = (start.start(), tag.end(), "tag", text[start.end() : tag.start()]), None
    return best


def _hash(text: str) -> _Hit | None:
    begin = text.rstrip().rfind("\n") + 1
    line = text[begin:].strip()
    if not line.startswith("#### ") or len(line) > _BARE:
        return None
    return begin, len(text), "hash", line[5:]


def _result(text: str) -> _Hit | None:
    """The last line, where it gives a result or is emphasised from end to end."""
    begin = text.rstrip().rfind("\n") + 1
    line = text[begin:].strip()
    if len(line) <= 400 and (mark := _RESULT.search(line)) and _leads(line, mark.start()):
        answer = line[mark.end() :]
        if not _NO_ANSWER.match(answer) and (answer.count(",") > 1 or not DENIES.search(answer)):
            return begin, len(text), "end", answer
    if begin and 4 < len(line) <= _BARE and line.startswith("**") and line.rstrip(".").endswith("**"):
        inner = line.rstrip(".")[2:-2]
        if "**" not in inner and not inner.endswith(":"):
            return begin, len(text), "end", inner
    return None


def _keyed(text: str) -> _Hit | None:
    """The answer of a text that is a JSON object, or ends with one in a code block."""
    bare = text.strip()
    if bare.endswith("```") and len(bare) <= 10 * _BLOCK:
        bare = bare[:-3].rpartition("```")[2].partition("\n")[2].strip()
    if len(bare) > 10 * _BLOCK or not (bare.startswith("{") and bare.endswith("}")):
        return None
    try:
        made = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    for key in ("final_answer", "answer", "result"):
        if isinstance(made, dict) and isinstance(value := made.get(key), str | int | float):
            return text.rfind(bare), len(text), "json", str(value)
    return None
