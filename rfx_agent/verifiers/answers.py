"""Default answer extraction and a canonical form of answers: pure Python, linear in the length of the text.

The text is a model's and may be anything. Nothing here backtracks, recurses or expands a number.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Context, Decimal
from fractions import Fraction

__all__ = ["bare_answer", "canonical", "extract_answer", "number", "stated_answer"]

_BARE = 200  # longest text that is taken for an answer when it states none
_LONG = 10_000  # characters above which an answer is only compared, not normalised
_DIGITS = 1000  # longest number that is read as one
_EXPONENT = 400  # "1e999999999" is a word, not a gigabyte of digits
_BRACES = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.DOTALL)
_TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", re.ASCII)
_RATIO = re.compile(r"([+-]?\d+)\s?/\s?(\d+)", re.ASCII)
_FRAC = re.compile(r"([+-]?)\\[dt]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}", re.ASCII)
_NOISE = Context(prec=14)
_ULPS = Decimal("5e-16")  # two units in the last place of a double, relative
_SPELLINGS = {0x2212: "-", 0x2009: " ", 0x202F: " "} | {0xFF01 + i: chr(0x21 + i) for i in range(94)}


def extract_answer(text: str) -> str | None:
    """The answer that ``text`` states, or None.

    Looked for are a line ``Answer: X`` or ``Final answer: X`` (in any case, Markdown tolerated; X may stand on the
    next line), ``\\boxed{X}`` with balanced braces, and ``<answer>X</answer>``. Whichever stands last counts, because
    a model that corrects itself does so below. A box within a stated answer is unpacked.
    """
    found = [hit for finder in (_line, _boxed, _tagged) if (hit := finder(text)) is not None]
    if not found:
        return None
    answer = max(found)[1].strip()
    for _ in range(4):
        if (box := _boxed(answer)) is None:
            break
        answer = box[1].strip()
    return answer or None


def bare_answer(text: str) -> str | None:
    """A short single line as it is: a tool's result is the answer alone. None for anything longer."""
    bare = text.strip()
    return bare if bare and "\n" not in bare and len(bare) <= _BARE else None


def stated_answer(text: str) -> str | None:
    """The answer that ``text`` states, else a short single line as it is."""
    return extract_answer(text) or bare_answer(text)


def _line(text: str) -> tuple[int, str] | None:
    best: tuple[int, str] | None = None
    position, awaited = 0, False
    for line in text.split("\n"):
        position += len(line) + 1
        bare = line.lstrip("*_`#> \t")
        head = bare[:12].lower()
        words = next((words for words in ("final answer", "answer") if head.startswith(words)), None)
        rest = bare[len(words) :].lstrip("*_` \t") if words else ""
        if rest.startswith((":", "\uff1a", "=")):
            answer = _plain(rest[1:])
            awaited = not answer
        else:
            answer = _plain(line) if awaited else ""
            awaited = awaited and not answer
        if answer:
            best = (position, answer)
    return best


def _plain(text: str) -> str:
    return text.strip().strip("*`").strip()


def _boxed(text: str) -> tuple[int, str] | None:
    """The box that closes last; one left open hides neither those before nor those within it."""
    begin = text.find("\\boxed")
    if begin < 0:
        return None
    opened: list[int | None] = []  # per open brace, where its box's content begins, or None for a plain brace
    best: tuple[int, int] | None = None
    for token in _BRACES.finditer(text, begin):
        kind = token[0]
        if kind == "}":
            if opened and (start := opened.pop()) is not None:
                best = (start, token.start())
        elif kind == "{":
            opened.append(None)
        elif kind.startswith("\\boxed"):
            opened.append(token.end())
    return None if best is None else (best[1], text[best[0] : best[1]])


def _tagged(text: str) -> tuple[int, str] | None:
    start: int | None = None
    best: tuple[int, int] | None = None
    for tag in _TAGS.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            best, start = (start, tag.start()), None
    return None if best is None else (best[1], text[best[0] : best[1]])


def canonical(answer: str, *, casefold: bool = True) -> str:
    """One spelling for answers that are written differently and mean the same at first sight.

    White space is evened out; enclosing ``$``, quotes and Markdown marks and the trailing period go; ``1,234`` and
    ``$1234.0`` become 1234, ``0.30000000000000004`` is 0.3; words lose their case unless ``casefold`` is false.
    A ratio stays as written: 20/22 is no simplified 10/11. What takes algebra to see is ``MathVerifier``'s business.
    """
    if len(answer) > _LONG:
        return answer.strip()
    text = _unwrap(" ".join(unicodedata.normalize("NFC", answer).translate(_SPELLINGS).split()))
    value = _decimal(text)
    if value is not None:
        return _shortest(value)
    return text.casefold() if casefold else text


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, a ratio ``a/b`` or ``\\frac{a}{b}``; None for anything else, and for
    numbers of more than a thousand digits or an exponent beyond 400."""
    if len(text) > _DIGITS:
        return None
    text = _unwrap(text.translate(_SPELLINGS).strip())
    if (value := _decimal(text)) is not None:
        return Fraction(value)
    if (ratio := _RATIO.fullmatch(text)) and int(ratio[2]):
        return Fraction(int(ratio[1]), int(ratio[2]))
    if (ratio := _FRAC.fullmatch(text)) and int(ratio[3]):
        return Fraction(int(ratio[2]), int(ratio[3])) * (-1 if ratio[1] == "-" else 1)
    return None


def _decimal(text: str) -> Decimal | None:
    if not text or len(text) > _DIGITS:
        return None
    text = text.removeprefix("\\$").removeprefix("$").strip().replace("{,}", ",")
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    if not _NUMBER.fullmatch(text):
        return None
    value = Decimal(text)
    if value.is_zero():
        return Decimal(0)
    return _denoised(value) if abs(value.adjusted()) <= _EXPONENT else None


def _denoised(value: Decimal) -> Decimal:
    """``0.30000000000000004`` is 0.3: what binary floating point adds to a short decimal, and only that."""
    digits, exponent = value.as_tuple().digits, value.as_tuple().exponent
    if len(digits) not in (16, 17, 18) or not isinstance(exponent, int) or exponent >= 0:
        return value
    if value == value.to_integral_value():  # an integer in a float's spelling is exact
        return value
    short = _NOISE.plus(value).normalize(_NOISE)
    noise = abs(value - short) <= abs(value) * _ULPS
    return short if noise and len(short.as_tuple().digits) <= 11 else value


def _shortest(value: Decimal) -> str:
    digits = format(value, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ('"', '"'), ("'", "'"), ("**", "**"), ("`", "`"))


def _unwrap(text: str) -> str:
    for _ in range(8):
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in _PAIRS:
            inside = text[len(left) : -len(right)]
            if inside and text.startswith(left) and text.endswith(right) and left not in inside:
                text = inside.strip()
                break
        if text == before:
            break
    return text
