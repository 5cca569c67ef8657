"""Numbers as they are written, with their units: read in full or not at all, and exact."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rfx_agent.verifiers.tidy import tidy, words_of
from rfx_agent.verifiers.units import CURRENCIES, Unit, scale_of, unit_of

__all__ = ["Amount", "amount", "close", "equal_amounts"]

LEAST_DIGITS = 6
"""Significant digits at which a decimal may stand for what it rounds."""

_DIGITS = 1000  # longest number that is read as one
_EXPONENT = 400
_GROUPED = re.compile(
    r"[1-9]\d{0,2}(?:[. ]\d{3})+,\d+(?![,\d])"
    r"|[1-9]\d{0,2}(?:(?P<mark>[,_' ])\d{3})(?:(?P=mark)\d{3})*(?:\.\d*)?|[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d*)?",
    re.ASCII,
)
_PLAIN = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_POWER = re.compile(
    r"[eE]([+-]?\d{1,4})(?![\w.])|\s?(?:\\times|\\cdot|[x*])\s?10\s?\^\s?(?:\{\s?([+-]?\s?\d{1,4})\s?\}|\(?([+-]?\d{1,4})\)?)",
    re.ASCII,
)
_OVER = re.compile(r"\s?/\s?(\d{1,400})(?![\d.])", re.ASCII)
_FRAC = re.compile(r"\\frac\s?(?:\{\s?(-?\d{1,400})\s?\}|(\d))\s?(?:\{\s?(\d{1,400})\s?\}|(\d))", re.ASCII)
_MIXED = re.compile(
    r"(\d{1,400})(?:\s(?:and\s)?(\d{1,9})\s?/\s?(\d{1,9})(?![\d.])|\s?\\frac\{(\d{1,9})\}\{(\d{1,9})\})", re.ASCII
)
_REPEATING = re.compile(r"(\d{0,50})\.(\d{0,50})\\overline\s?\{(\d{1,50})\}", re.ASCII)
_CODE = re.compile(r"0\d{2,}", re.ASCII)  # 0110 is not 110
_SPELLED_LIST = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS_LIST = "twenty thirty forty fifty sixty seventy eighty ninety"
_SPELLED = {
    **{word: i for i, word in enumerate(_SPELLED_LIST.split())},
    **{word: 10 * i for i, word in enumerate(_TENS_LIST.split(), 2)},
}
_GLOSS = re.compile(r"\s\(([A-Za-z][A-Za-z -]{2,80})\)\Z")  # of "42 (forty-two)"
_TIME = re.compile(r"(?<=[\d\s])\\(min|sec)(?=\s?(?:\Z|/))")  # units, not functions
_MICRO = re.compile(r"μ\s?\\(?:text|mathrm)\s?\{(\w{1,3})\}")
_LETTERS = {"\\mu": "μ", "\\Omega": "Ω", "\\degree": "°"}
_LETTER = re.compile(r"(\\(?:mu|Omega|degree))(?![A-Za-z])\s?")
_BEFORE = re.compile(r"(?:\\approx|≈|~|US|CA|AU)?\s?(\\\$|[$€£¥₹₽₩])\s?|(?:\\approx|~)\s?")
_NAMED = re.compile(
    r"\s?\\(?:text|mbox|mathrm|textnormal|textbf|operatorname|textrm|textit)\s?\{([^{}]{0,60})\}\s?(\^\s?\{?[23]\}?)?"
)


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its unit.

    Attributes:
        value: the exact value, in units; a percentage is not divided.
        digits: significant digits of a number with a decimal point, else None.
        exponent: power of ten of the last digit written.
        unit: the unit, or None.
        written: the number as it was written, without its unit.
    """

    value: Fraction
    digits: int | None = None
    exponent: int = 0
    unit: Unit | None = None
    written: str = ""


def amount(text: str) -> Amount | None:
    """The amount that ``text`` is from its first to its last character, or None."""
    if len(text) > _DIGITS:
        return None
    text = tidy(text).replace("\\ ", " ")
    text = _LETTER.sub(lambda m: _LETTERS[m[1]], text)
    text = _TIME.sub(r" \1", text)
    text = _MICRO.sub("μ\\1", text)
    if gloss := _GLOSS.search(text):
        again = spelled(gloss[1])
        told = amount(text[: gloss.start()]) if again is not None else None
        return told if told is not None and told.value == again else None
    sign = 1
    currency = None
    for _ in range(2):
        if before := _BEFORE.match(text):
            currency = CURRENCIES[before[1][-1]] if before[1] else currency
            text = text[before.end() :]
        if text[:1] in ("-", "+"):
            sign, text = (-sign if text[0] == "-" else sign), text[1:].lstrip()
    if text.startswith("{") and text.endswith("}") and "{" not in text[1:]:
        text = text[1:-1].strip()
    if (word := spelled(text)) is not None:
        return Amount(Fraction(sign * word), unit=Unit(currency) if currency else None)
    if (read := _value(text)) is None:
        return None
    value, digits, exponent, end = read
    factor, rest = scale_of(text[end:])
    written = f"{'-' if sign < 0 else ''}{text[:end]}{'' if factor == 1 else f'*{factor}'}"
    unit = Unit(currency) if currency else None
    if rest.strip():
        found = _unit(rest)
        if found is None or (unit is not None and found.name != unit.name):
            return None
        unit = found
    if factor != 1:
        digits = None
    return Amount(sign * value * factor, digits, exponent, unit, written)


def spelled(text: str) -> int | None:
    """A whole number below a million in English words; None for anything else."""
    words = text.casefold().replace("-", " ").replace(" and ", " ").split() if text[:1].isalpha() else []
    if not words or len(words) > 12:
        return None
    total, part, least = 0, 0, 10**6
    for word in words:
        if word == "thousand" and part and not total:
            total, part, least = part * 1000, 0, 1000
        elif word == "hundred" and 0 < part < 10:
            part, least = part * 100, 100
        elif word in _SPELLED and (value := _SPELLED[word]) < least and (value or len(words) == 1):
            part, least = part + value, 10 if value >= 20 else 0
        else:
            return None
    return total + part


def _unit(rest: str) -> Unit | None:
    bare = rest.strip()
    if bare.startswith("\\$") or bare in CURRENCIES:
        return Unit(CURRENCIES[bare[-1]])
    if bare.startswith("^"):
        bare = re.sub(r"\^\s?\{?\s?\\circ\s?\}?", "°", bare)
        return unit_of(words_of(bare), attached=True) if bare.startswith("°") else None
    if named := _NAMED.match(rest):
        follows = words_of(rest[named.end() :])
        return unit_of(f"{named[1]}{named[2] or ''} {follows}", attached=False, named=True)
    return None if "\\" in bare else unit_of(bare, attached=not rest[:1].isspace())


def _value(text: str) -> tuple[Fraction, int | None, int, int] | None:
    if (mixed := _MIXED.match(text)) and int(mixed[3] or mixed[5]):
        top, bottom = int(mixed[2] or mixed[4]), int(mixed[3] or mixed[5])
        if top < bottom:
            return int(mixed[1]) + Fraction(top, bottom), None, 0, mixed.end()
    if frac := _FRAC.match(text):
        bottom = int(frac[3] or frac[4])
        return (Fraction(int(frac[1] or frac[2]), bottom), None, 0, frac.end()) if bottom else None
    if over := _REPEATING.match(text):
        once, again = int(over[2] or "0"), int(over[3])
        value = int(over[1] or "0") + (once + Fraction(again, 10 ** len(over[3]) - 1)) / Fraction(10) ** len(over[2])
        return value, None, 0, over.end()
    grouped = _GROUPED.match(text)
    if grouped and (grouped.end() == len(text) or not (text[grouped.end()].isdigit() or text[grouped.end()] in ",_'")):
        end = grouped.end()
        if grouped["mark"]:
            written = grouped[0].replace(grouped["mark"], "")
        else:
            written = grouped[0].replace(".", "").replace(" ", "").replace(",", ".")
    elif plain := _PLAIN.match(text):
        written, end = plain[0], plain.end()
    else:
        return None
    if _CODE.fullmatch(written):
        return None
    value = Fraction(written if written[-1] != "." else written[:-1])
    digits = len(written.replace(".", "").lstrip("0")) or 1 if "." in written.rstrip(".") else None
    exponent = -len(written.partition(".")[2])
    if power := _POWER.match(text, end):
        shift = int((power[1] or power[2] or power[3]).replace(" ", ""))
        if abs(shift) > _EXPONENT:
            return None
        value, exponent, end = value * Fraction(10) ** shift, exponent + shift, power.end()
    elif digits is None and (over := _OVER.match(text, end)):
        if not int(over[1]):
            return None
        value, end = value / int(over[1]), over.end()
    return value, digits, exponent, end


def decimal_comma(text: str) -> str | None:
    """``1,22`` as 1.22, where it may be that."""
    match = re.fullmatch(r"([+-]?\s?(?:\\?[$€£¥₹₽₩]\s?)?\d{1,12}),(\d{1,12})(\D[^\d,]{0,40})?", tidy(text))
    return None if match is None else f"{match[1]}.{match[2]}{match[3] or ''}"


def equal_amounts(gold: Amount, found: Amount, tolerance: float) -> bool:
    """Whether two amounts are the same. A unit on one side only is no difference; on both it must be the same."""
    scales = [Fraction(1)]
    if gold.unit is not None and found.unit is not None:
        if gold.unit.name != found.unit.name:
            return False
    elif (unit := gold.unit or found.unit) is not None:
        if unit.weak:
            return False
        if unit.name == "%":
            scales.append(Fraction(1, 100) if gold.unit is not None else Fraction(100))
            if gold.unit is None and abs(gold.value) < 1 and gold.value:
                scales.pop(0)  # of 0.25 it is 25 %
    return any(close(_scaled(gold, scale), found, tolerance) for scale in scales)


def _scaled(gold: Amount, scale: Fraction) -> Amount:
    shift = {Fraction(1): 0, Fraction(100): 2, Fraction(1, 100): -2}[scale]
    return Amount(gold.value * scale, gold.digits, gold.exponent + shift, gold.unit)


def close(gold: Amount, found: Amount, tolerance: float) -> bool:
    """Whether two values are equal, or one rounds the other as the rules allow."""
    if gold.value == found.value:
        return True
    difference = abs(gold.value - found.value)
    if tolerance and difference <= Fraction(tolerance) * abs(gold.value):
        return True
    for one, other in ((gold, found), (found, gold)):
        if one.digits is None or one.digits < LEAST_DIGITS:
            continue
        if one.digits >= 15 and difference <= abs(other.value) * Fraction(1, 10**15):
            return True  # what binary floating point leaves
        rounds = other.digits is None and other.value.denominator != 1
        if rounds and difference <= Fraction(10) ** one.exponent / 2:
            return True
    return False
