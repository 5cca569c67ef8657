"""A canonical form of answers, and the numbers among them: pure Python, linear in the length of the text.

The text is a model's and may be anything. Nothing here backtracks, recurses or expands a number.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Context, Decimal
from fractions import Fraction

__all__ = ["canonical", "number", "unwrapped"]

_LONG = 10_000  # characters above which an answer is only compared, not normalised
_DIGITS = 1000  # longest number that is read as one
_EXPONENT = 400  # "1e999999999" is a word, not a gigabyte of digits
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", re.ASCII)
_RATIO = re.compile(r"([+-]?\d+)\s?/\s?(\d+)", re.ASCII)
_FRAC = re.compile(r"([+-]?)\\[dt]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}", re.ASCII)
_NOISE = Context(prec=14)
_ULPS = Decimal("5e-16")  # two units in the last place of a double, relative
_SPELLINGS = {0x2212: "-", 0x2009: " ", 0x202F: " ", 0x3002: ".", 0xB5: "μ"} | {
    0xFF01 + i: chr(0x21 + i) for i in range(94)
}
_STYLES = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal|up)?|math(?:rm|bf|it|tt|sf|cal|bb)?|mbox|emph|operatorname)\s?\{"
)
_ESCAPED = re.compile(r"(?<!\\)\\([%_&# ])")  # of LaTeX
_SIGNS = re.compile(r"\s?([×÷·⋅])\s?")
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_CODE = re.compile(r"[+-]?0\d+", re.ASCII)  # what begins with a zero is a code: 007 is not 7


def canonical(answer: str, *, casefold: bool = True) -> str:
    """One spelling for answers that are written differently and mean the same at first sight.

    White space is evened out, also around ``×``; enclosing ``$``, quotes, Markdown marks and ``\\text{}`` and the
    trailing period go, and ``(C)`` is C; ``1,234`` and ``$1234.0`` become 1234, ``0.30000000000000004`` is 0.3, but
    ``007`` stays a code; words lose their case unless ``casefold`` is false. A ratio stays as written: 20/22 is no
    simplified 10/11. What takes algebra to see is ``MathVerifier``'s business.
    """
    if len(answer) > _LONG:
        return answer.strip()
    text = unwrapped(" ".join(unicodedata.normalize("NFC", answer).translate(_SPELLINGS).split()))
    if "\\" in text:
        text = _ESCAPED.sub(r"\1", text)
    text = _SIGNS.sub(r" \1 ", text).strip()
    if not _CODE.fullmatch(text) and (value := _decimal(text)) is not None:
        return _shortest(value)
    return text.casefold() if casefold else text


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, a ratio ``a/b`` or ``\\frac{a}{b}``; None for anything else, and for
    numbers of more than a thousand digits or an exponent beyond 400."""
    if len(text) > _DIGITS:
        return None
    text = unwrapped(text.translate(_SPELLINGS).strip())
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


def unwrapped(text: str) -> str:
    """``text`` without what encloses all of it: ``$``, quotes, Markdown, ``\\text{}``, the trailing period."""
    for _ in range(8):
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in _PAIRS:
            inside = text[len(left) : -len(right)]
            if inside and text.startswith(left) and text.endswith(right) and left not in inside:
                text = inside.strip()
                break
        if (style := _STYLES.match(text)) and text.endswith("}") and "}" not in text[:-1].replace("\\}", ""):
            text = text[style.end() : -1].strip()
        if (choice := _CHOICE.fullmatch(text)) is not None:
            text = choice[1]
        if text == before:
            break
    return text
