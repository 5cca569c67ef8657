"""Whether two answers are the same as mathematics. Both are read in full or not at all; the rest is text.

What needs algebra is asked of a function that the caller gives; the parts of lists, sets, intervals and relations are
taken apart here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from rfx_agent.verifiers.amounts import Amount, amount, decimal_comma, equal_amounts
from rfx_agent.verifiers.forms import canonical, unwrapped
from rfx_agent.verifiers.tidy import mathematical, outside, split, tidy, words_of
from rfx_agent.verifiers.units import unit_of

__all__ = ["Algebra", "Comparison"]

Algebra: TypeAlias = Callable[[str, str, str], int | None]
"""Compares two expressions in LaTeX: in mode "equal" 1 or 0; in mode "multiple" 1 where the first is the second times a
positive constant, -1 where it is a negative one, else 0. None where one of them cannot be read."""

_PARTS = 100  # longest list that is compared by its parts
_DEPTH = 6
_RELATION = re.compile(r"\\(?:leq|geq|neq|approx|in|equiv|sim)(?![A-Za-z])|[<>=]|\\[{}]|[()\[\]{}|]")
_NAME = re.compile(
    r"\|?\s?(?:\\[A-Za-z]{2,10}|[A-Za-z]{1,4})(?:_(?:\{[\w, ]{1,8}\}|\w))?'{0,2}(?:\([A-Za-z0-9, ]{1,10}\))?\s?\|?"
    r"(?:\s?:\s?[A-Z]{1,4}(?:_\{?\w{1,6}\}?)?)?"
    r"|\([A-Za-z](?:\s?,\s?[A-Za-z]){1,5}\)|\\frac\{(?:d\s?\w?|[A-Z]{1,3})\}\{(?:d\s?\w|[A-Z]{1,3})\}"
    r"|[A-Za-z][A-Za-z ]{2,30}"
)
_DENIES = re.compile(
    r"\b(?:not|no|never|false|wrong|unless|if|or|than|but|isn|let|assume|suppose|try|test|fails?|check|when|for|given"
    r"|need|solve|show|prove|please)\b",
    re.IGNORECASE,
)
_EXPRESSION_UNIT = re.compile(
    r"(?<=[\w})!])\s*\\(?:text|mbox|mathrm|textnormal|textbf)\s?\{([^{}]{1,60})\}\s?(\^\s?\{?[23]\}?)?$"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares answers under one tolerance.

    Attributes:
        algebra: compares two expressions.
        tolerance: relative difference of numbers that is none.
    """

    algebra: Algebra
    tolerance: float = 0.0

    def same(self, gold: str, found: str, *, depth: int = 0) -> bool:
        """Whether ``found`` is ``gold``."""
        if depth > _DEPTH or not found.strip() or not gold.strip():
            return False
        if _as_text(gold) == _as_text(found):
            return True
        one, two = words_free(gold), words_free(found)
        if _as_text(one) == _as_text(two):
            return True
        ours, theirs = amount(gold) or amount(one), amount(found) or amount(two)
        if ours is not None and theirs is not None:
            return equal_amounts(ours, theirs, self.tolerance)
        if ours is not None and (comma := decimal_comma(found)) and (theirs := amount(comma)):
            return equal_amounts(ours, theirs, self.tolerance)
        if theirs is not None and (comma := decimal_comma(gold)) and (ours := amount(comma)):
            return equal_amounts(ours, theirs, self.tolerance)
        return self._structures(one, two, ours, theirs, depth)

    def _structures(self, one: str, two: str, ours: Amount | None, theirs: Amount | None, depth: int) -> bool:
        a, b = _relation(one), _relation(two)
        if a is not None or b is not None:
            return self._relations(one, two, a, b, depth)
        if _is_code(one) or _is_code(two):
            one, two = re.sub(r"\s?([:/])\s?", r"\1", one), re.sub(r"\s?([:/])\s?", r"\1", two)
            return one.casefold() == two.casefold() if _LITERAL.fullmatch(one) else one == two
        a_parts, b_parts = _collection(one), _collection(two)
        if a_parts is not None or b_parts is not None:
            if a_parts is None or b_parts is None:
                return False
            return self._collections(a_parts, b_parts, depth)
        one, unit_one = _without_unit(one)
        two, unit_two = _without_unit(two)
        unit_one = unit_one or (ours.unit.name if ours and ours.unit else None)
        unit_two = unit_two or (theirs.unit.name if theirs and theirs.unit else None)
        if unit_one and unit_two and unit_one != unit_two:
            return False
        for side, made in ((one, ours), (two, theirs)):
            if made is not None and made.unit is not None:
                if made.unit.weak or made.unit.name == "%":
                    return False
            elif made is None and not mathematical(side):
                return False
        one, two = (_bare_number(x, made) for x, made in ((one, ours), (two, theirs)))
        return bool(self.algebra(one, two, "equal"))

    def _relations(
        self,
        one: str,
        two: str,
        a: tuple[list[str], list[str]] | None,
        b: tuple[list[str], list[str]] | None,
        depth: int,
    ) -> bool:
        if a is not None and (rest := _assigned(a)) is not None and (b is None or (other := _assigned(b)) is not None):
            if b is None:
                return any(self.same(x, two, depth=depth + 1) for x in rest[1])
            assert other is not None  # noqa: S101  # what the condition says
            named = not rest[0] or not other[0] or rest[0] == other[0]
            return named and any(self.same(x, y, depth=depth + 1) for x in rest[1] for y in other[1])
        if b is not None and (other := _assigned(b)) is not None and a is None:
            return any(self.same(one, x, depth=depth + 1) for x in other[1])
        first, second = _interval(a, one), _interval(b, two)
        if a is None or (b is not None and len(b[0]) > 2 and len(a[0]) == 2):
            return False  # a set was asked for, not the condition that makes it
        if first is not None and second is not None:
            return self.same(first, second, depth=depth + 1)
        if a is None or b is None or len(a[0]) != len(b[0]):
            return False
        if not all(mathematical(x) for x in (*a[0], *b[0])):
            return False
        if len(a[1]) > 1:
            turned = [_TURNED.get(x, x) for x in reversed(b[1])]
            pairs = b[0] if a[1] == b[1] else b[0][::-1] if a[1] == turned else None
            return pairs is not None and all(self.same(x, y, depth=depth + 1) for x, y in zip(a[0], pairs, strict=True))
        ours, theirs = a[1][0], b[1][0]
        sign = self.algebra(f"({a[0][0]})-({a[0][1]})", f"({b[0][0]})-({b[0][1]})", "multiple")
        if sign is None or sign == 0:
            return False
        if ours in ("=", "\\neq"):
            return ours == theirs
        return ours == (theirs if sign > 0 else _TURNED.get(theirs))

    def _collections(self, a: _Parts, b: _Parts, depth: int) -> bool:
        if a.brackets == "{}" or b.brackets == "{}":
            a, b = a.braced(b, wanted=True), b.braced(a, wanted=False)
        if not (a.ordered and b.ordered):
            a, b = a.distinct(), b.distinct()
        if len(a.items) != len(b.items) or len(a.items) > _PARTS:
            return False
        if a.brackets and b.brackets and a.brackets != b.brackets:
            return False
        kinds = {a.brackets, b.brackets}
        if kinds & {"\\{\\}"} and kinds & {"()", "[]", "[)", "(]"}:
            return False
        if "" in kinds and kinds & {"[)", "(]"}:
            return False
        if "" in kinds and "[]" in kinds and len(a.items) == 2:
            return False  # an interval
        told = "".join(a.names) != "".join(b.names) and "" in (
            *a.names,
            *b.names,
        )  # names on one side say which is which
        if (
            (a.ordered and b.ordered)
            or (told and max(len({*a.names}), len({*b.names})) == len(a.items))
            or ("" in kinds and kinds & {"()", "[]"})
        ):
            return all(self.same(x, y, depth=depth + 1) for x, y in zip(a.items, b.items, strict=True))
        left = list(b.items)
        for item in a.items:
            match = next((x for x in left if _as_text(x) == _as_text(item)), None)
            if match is None:
                match = next((x for x in left if self.same(item, x, depth=depth + 1)), None)
            if match is None:
                return False
            left.remove(match)
        return True


@dataclass(frozen=True, slots=True)
class _Parts:
    items: tuple[str, ...]
    brackets: str
    ordered: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What each item is called; "" where it has no name."""
        return tuple(x.partition("=")[0].strip() if "=" in x else "" for x in self.items)

    def braced(self, other: _Parts, *, wanted: bool) -> _Parts:
        """Plain braces are a set beside a set, and beside brackets where the reference has them; else a mere group of
        LaTeX."""
        if self.brackets != "{}":
            return self
        if other.brackets in ("{}", "\\{\\}") or (wanted and other.brackets):
            return replace(self, brackets="\\{\\}", ordered=False)
        return replace(self, brackets="")

    def distinct(self) -> _Parts:
        return replace(self, items=tuple({_as_text(x): x for x in self.items}.values()))


_TURNED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
_EMPTY = re.compile(r"\\\{\s?\\\}|\{\s?\}|\\varnothing")
_LITERAL = re.compile(r"0[xXbBoO]\s?[0-9A-Fa-f]+")
_CLOCK = re.compile(r"(?<=\d)\s?(?:([AP])M|([ap])\.?m\.?)\Z")
_CODES = re.compile(r"0[xXbBoO][0-9A-Fa-f]+|\d+_\{?\d+\}?|\d[\d:/.]*[:/.-][\d:/.-]*\d")


def _is_code(text: str) -> bool:
    return bool(_CODES.fullmatch(text)) and amount(text) is None


def _as_text(text: str) -> str:
    """How two texts are compared: words in any case, codes and symbols as they stand."""
    bare = canonical(_base(unwrapped(words_of(unwrapped(text)))), casefold=False)
    bare = _CLOCK.sub(lambda m: f" {(m[1] or m[2]).casefold()}m", re.sub(r"\s?([,;])\s?", r"\1", bare))
    wordy = re.search(r"[^\W\d_]{2}", bare) and not re.search(r"[\d\\^_=+*/<>]", bare)
    return bare.casefold() if wordy else bare


def _base(text: str) -> str:
    return re.sub(r"(?<=\d)_\{(\d{1,2})\}", r"_\1", text)


def words_free(text: str) -> str:
    """``text`` tidied, units that are marked as text kept, other styles gone."""
    made = _base(tidy(text))
    if not _EXPRESSION_UNIT.search(made):
        made = words_of(made)
    made = tidy(made)
    if _EMPTY.fullmatch(made):
        return "\\emptyset"
    if made[1:].startswith("\\begin{") and made[0] in "[(" and _encloses(made):
        made = made[1:-1].strip()  # the brackets of a matrix
    return made


def _bare_number(text: str, made: Amount | None) -> str:
    """An amount as the algebra reads it: without its unit, and digits as they were written."""
    if made is None:
        return text
    if made.digits is None:
        return (
            f"({made.value.numerator})/({made.value.denominator})" if made.value.denominator != 1 else str(made.value)
        )
    return _decimal(made)


def _decimal(made: Amount) -> str:
    digits = made.value / 10**0
    scaled = abs(digits) * 10 ** max(0, -made.exponent)
    whole = str(int(scaled))
    places = max(0, -made.exponent)
    if places:
        whole = whole.rjust(places + 1, "0")
        whole = f"{whole[:-places]}.{whole[-places:]}"
    return ("-" if made.value < 0 else "") + whole


def _without_unit(text: str) -> tuple[str, str | None]:
    if found := _EXPRESSION_UNIT.search(text):
        unit = unit_of(f"{found[1]}{found[2] or ''}", attached=False, named=True)
        if unit is not None:
            return text[: found.start()].strip(), unit.name
    return text, None


def _collection(text: str) -> _Parts | None:
    """The parts of a tuple, list, set, interval, union, plus-or-minus or bare list; None for a single thing."""
    if text.startswith("\\begin{"):
        return None
    if (parts := _plus_or_minus(text)) is not None:
        return parts
    if (parts := _solutions(text)) is not None:
        return parts
    union = re.split(r"\\cup(?![A-Za-z])", text)
    if len(union) > 1:
        return _Parts(tuple(x.strip() for x in union), "\\cup", ordered=False)
    for left in ("\\{", "(", "[", "{", "\\langle"):
        if text.startswith(left):
            right = next((x for x in ("\\}", ")", "]", "}", "\\rangle") if text.endswith(x)), None)
            if right is None or not _encloses(text):
                break
            items, _ = split(text[len(left) : len(text) - len(right)], words=False)
            if left == "{" and right == "}":
                inner = _collection(text[1:-1].strip())
                plain = inner is not None and not inner.brackets and inner.ordered
                return replace(inner, brackets="{}") if inner is not None and plain else inner
            if len(items) < 2 and left in ("(", "["):
                return _Parts(tuple(items), left + right, ordered=True) if left == "[" and right == "]" else None
            items = [] if items == [""] else items
            return _Parts(tuple(items), left + right, ordered=left != "\\{")
    items, between = split(text)
    if len(items) < 2 or not all(items):
        return None
    named = any(_relation(x) is not None for x in items)
    nested = all(x.startswith(("(", "[", "\\{")) for x in items)
    # "1 and 2" are roots; "1, 2 and 3" may be in the order that was asked for, and words always are.
    loose = named or nested or between == {"and"} or bool(between & {"or", ";"})
    if loose and not all(amount(x) is not None or mathematical(x.rpartition("=")[2].strip()) or nested for x in items):
        loose = "or" in between
    return _Parts(tuple(items), "", ordered=not loose)


def _solutions(text: str) -> _Parts | None:
    """``p=5, q=2; p=7, q=2`` as tuples."""
    groups = [split(x, words=False)[0] for x in text.split(";")]
    if len(groups) < 2 or not all(len(x) > 1 and all(y.count("=") == 1 for y in x) for x in groups):
        return None
    return _Parts(tuple(f"({','.join(y.partition('=')[2] for y in x)})" for x in groups), "", ordered=False)


def _plus_or_minus(text: str) -> _Parts | None:
    if text.count("\\pm") != 1 or split(text)[0] != [text]:
        return None
    left, _, right = text.partition("\\pm")
    return _Parts((f"{left}+{right}".lstrip("+"), f"{left}-{right}"), "", ordered=False)


def _encloses(text: str) -> bool:
    """Whether the bracket that opens ``text`` is the one that closes it."""
    depth = 0
    for token in re.finditer(r"\\[{}]|\\[lr]angle|[()\[\]{}]", text):
        depth += 1 if token[0] in ("(", "[", "{", "\\{", "\\langle") else -1
        if depth == 0:
            return token.end() == len(text)
    return False


def _relation(text: str) -> tuple[list[str], list[str]] | None:
    """The sides and the signs of a relation or a chain of them, outside of brackets; None where there is none."""
    sides: list[str] = []
    signs: list[str] = []
    begin = 0
    for token in outside(_RELATION, text):
        if token[0] != "|":
            sides.append(text[begin : token.start()].strip())
            signs.append(token[0])
            begin = token.end()
    if not signs or split(text)[0] != [text]:
        parts = split(text)[0]
        # A name before a list names the list: "n = 1, 2, 3".
        if signs and signs[0] == "=" and len(parts) > 1 and not any(_RELATION_SIGN.search(x) for x in parts[1:]):
            name, _, rest = text.partition("=")
            if _NAME.fullmatch(name.strip()):
                return [name.strip(), " and ".join(split(rest)[0])], ["="]
        return None
    sides.append(text[begin:].strip())
    return sides, signs


_RELATION_SIGN = re.compile(r"\\(?:leq|geq|neq|approx|in)(?![A-Za-z])|[<>=]")


def _assigned(relation: tuple[list[str], list[str]]) -> tuple[str, list[str]] | None:
    """The name and what it is said to be, for ``x = 5``, ``x \\in S`` and ``x = 1/3 \\approx 0.33``; else None."""
    sides, signs = relation
    if not set(signs) <= {"=", "\\approx", "\\in", "\\sim"} or not all(sides[1:]):
        return None
    name = sides[0]
    named = not name or _NAME.fullmatch(name) is not None
    sums = not any(re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", x)) for x in sides)  # 2+2 = 4
    if name == "" and "=" in signs:
        return None
    if (not named and not sums) or (" " in name and _DENIES.search(name)):
        return None
    stop = signs.index("\\approx") if "\\approx" in signs else len(signs)
    about = [sides[1]] if named else [sides[0], sides[-1]]
    return ("" if not named else "".join(name.split())), [sides[stop]] if stop else about


def _interval(relation: tuple[list[str], list[str]] | None, text: str) -> str | None:
    """A chain such as ``1 < x \\leq 2`` as an interval; an interval or a union as it is."""
    if relation is None:
        return text if _collection(text) is not None else None
    sides, signs = relation
    if (
        len(sides) == 3
        and _NAME.fullmatch(sides[1])
        and not _NAME.fullmatch(sides[0])
        and not _NAME.fullmatch(sides[2])
    ):
        if {*signs} <= {"<", "\\leq"}:
            return f"{'(' if signs[0] == '<' else '['}{sides[0]},{sides[2]}{')' if signs[1] == '<' else ']'}"
        if {*signs} <= {">", "\\geq"}:
            return f"{'(' if signs[1] == '>' else '['}{sides[2]},{sides[0]}{')' if signs[0] == '>' else ']'}"
    if len(sides) == 2 and signs[0] == "\\in":
        return sides[1]
    return None
