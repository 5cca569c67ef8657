"""Units behind and before numbers: which text is one, and which two are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["CURRENCIES", "Unit", "scale_of", "unit_of"]

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee", "₽": "ruble", "₩": "won"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# One spelling per unit; symbols keep their case, because mW is no MW.
_ALIASES = {
    "dollar": ("dollars", "usd", "us dollars", "bucks"),
    "euro": ("euros", "eur"),
    "pound sterling": ("pounds sterling", "gbp"),
    "cent": ("cents", "¢"),
    "yen": ("jpy",),
    "rupee": ("rupees", "inr", "rs", "rs."),
    "%": ("percent", "per cent", "pct", "percentage"),
    "degree": ("degrees", "°", "deg"),
    "°C": ("c", "degrees celsius", "celsius", "degree celsius", "℃"),
    "°F": ("f", "degrees fahrenheit", "fahrenheit", "degree fahrenheit", "℉"),
    "K": ("kelvin", "kelvins"),
    "rad": ("radian", "radians"),
    "s": ("sec", "secs", "second", "seconds"),
    "min": ("mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "day": ("days", "d"),
    "week": ("weeks", "wk"),
    "month": ("months", "mo"),
    "year": ("years", "yr", "yrs"),
    "ms": ("millisecond", "milliseconds"),
    "mm": ("millimeter", "millimeters", "millimetre", "millimetres"),
    "cm": ("centimeter", "centimeters", "centimetre", "centimetres"),
    "m": ("meter", "meters", "metre", "metres"),
    "km": ("kilometer", "kilometers", "kilometre", "kilometres"),
    "in": ("inch", "inches"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "mile": ("miles", "mi"),
    "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams", "gm"),
    "kg": ("kilogram", "kilograms", "kilo", "kilos", "kgs"),
    "t": ("ton", "tons", "tonne", "tonnes"),
    "lb": ("lbs", "pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "mL": ("ml", "milliliter", "milliliters", "millilitre", "millilitres"),
    "L": ("l", "liter", "liters", "litre", "litres"),
    "gallon": ("gallons", "gal"),
    "mile/h": ("mph",),
    "km/h": ("kmh", "kph", "kmph"),
    "N": ("newton", "newtons"),
    "J": ("joule", "joules"),
    "W": ("watt", "watts"),
    "V": ("volt", "volts"),
    "A": ("amp", "amps", "ampere", "amperes"),
    "Pa": ("pascal", "pascals"),
    "Hz": ("hertz",),
    "mol": ("mole", "moles"),
    "cal": ("calorie", "calories"),
    "kcal": ("kilocalorie", "kilocalories"),
    "Ω": ("ohm", "ohms"),
    "byte": ("bytes",),
    "bit": ("bits",),
    "acre": ("acres",),
    "hectare": ("hectares", "ha"),
    "rev/min": ("rpm",),
}
_SYMBOLS = (
    "kJ MJ kW MW GW mW kN kPa MPa kHz MHz GHz kB KB MB GB TB kWh Wh mA kV mV eV keV MeV nm pm dm cc atm bar psi dB ppm "
    "μm μs μg μL μF μA μV kΩ MΩ"
)
_NAMES = {other: name for name, others in _ALIASES.items() for other in (*others, name.casefold())}
_EXACT = {name: name for name in (*_ALIASES, *_SYMBOLS.split())}
_WORD = re.compile(r"[^\W\d_]+\.?|[°¢℃℉%]\s?[CF]?")
# Words that are no unit. They change what the number before them means, as in "3 more" or "5 percent of".
_NOT_UNITS_LIST = """
a about above add all an and approx approximately are around as at base be because below both but by choose
could different divided does equals even every except factorial fewer fifth fifths for fourth fourths from
greater half halves has have if in infinity is isn it larger least less like log maybe minus mod modulo more
most multiplied negative neither never no nor not odd of off on only or other over per perhaps pi plus possibly
power prime quarter quarters r remainder root should since sixth sixths smaller so sqrt squared cubed than that
the then third thirds through till times to too true unless until up was will with without would wrong yes
incorrect true false none sin cos tan log ln exp tens ones first second nd rd th st
"""
_NOT_UNITS = frozenset(_NOT_UNITS_LIST.split()) - {"second"}
_SHAPE = re.compile(r"[^\W\d_]|[°¢℃℉%/^²³·*\s.()0-9{}-]")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit by its one spelling; ``weak`` where it may as well be a variable (the ``m`` of ``5m``)."""

    name: str
    weak: bool = False


def scale_of(text: str) -> tuple[Fraction, str]:
    """``million`` and the like at the beginning of ``text`` as a factor, and what follows."""
    word, _, rest = text.strip().partition(" ")
    factor = _SCALES.get(word.casefold().rstrip("s,"))
    return (Fraction(1), text) if factor is None else (Fraction(factor), rest)


def unit_of(text: str, *, attached: bool, named: bool = False) -> Unit | None:
    r"""The unit that ``text`` is, or None. ``attached``: it follows its number without a space; ``named``: it was
    marked as text, ``\text{m}``."""
    text = " ".join(text.replace("**", "").split()).strip(" .")
    if not text or len(text) > 60 or not all(_SHAPE.match(c) for c in text):
        return None
    known = _known(text)
    if known is not None:
        single = len(text) == 1 and text.isalpha()
        return Unit(known, weak=single and attached and not named and text not in "gL")
    words = _WORD.findall(text)
    lower = [x.casefold().strip(".") for x in words]
    if not 1 <= len(words) <= 5 or _NOT_UNITS.intersection(lower) - ({"per", "of"} if len(words) > 2 else set()):
        return None
    if "/" in text or " per " in f" {text} ":
        return _quotient(text)
    if any(len(x) < 3 for x in lower) or (attached and not named) or re.search(r"[^\w\s'.-]|\d", text):
        return None
    return Unit(" ".join(_singular(x) for x in lower))


def _known(text: str) -> str | None:
    if text in _EXACT:
        return _EXACT[text]
    bare = re.sub(r"\s?°\s?", "°", text)
    if bare in _EXACT:
        return bare
    # A symbol in another case is another symbol, but for those that have one meaning in any.
    if (name := _NAMES.get(bare.casefold())) is not None and (len(bare) > 1 or bare.casefold() == bare or bare in "CF"):
        return name if len(bare) != 1 or bare in "CF%°¢dlfc" else None
    power = re.fullmatch(
        r"(?:(sq|square|cu|cubic)\.?\s)?(.{1,30}?)\s?(?:\^?\{?([23])\}?|([²³])|\s(squared|cubed))?", bare
    )
    if power and (power[1] or power[3] or power[4] or power[5]):
        base = _known(power[2])
        square = (power[1] or "")[:1] == "s" or power[3] == "2" or power[4] == "²" or power[5] == "squared"
        return None if base is None else f"{base}^{2 if square else 3}"
    return None


def _quotient(text: str) -> Unit | None:
    parts = re.split(r"\s?/\s?|\sper\s", text)
    if len(parts) != 2 or not all(parts):
        return None
    names = [_known(x) or (unit.name if (unit := unit_of(x, attached=False)) else None) for x in parts]
    return None if None in names else Unit(f"{names[0]}/{names[1]}")


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
