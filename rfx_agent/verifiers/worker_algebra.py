"""Algebra in the helper process (see ``worker_main.py``): LaTeX read in full into SymPy, and equality without rounding.

Nothing of the package is imported. A text that is not read to its last character raises ``Unreadable``. Symbols keep
their case and their primes, what is written side by side is a product, and ``1/2x``, which people read in two ways,
is not read at all. Sums, integrals and limits go to math-verify's reader.
"""

from __future__ import annotations

import importlib
import random
import re
from typing import Any

__all__ = ["compare"]

sympy: Any = importlib.import_module("sympy")  # it has no types

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(\\[A-Za-z]+|\\[{}|\\])|([A-Za-z]'{0,3})|(\S))")
_GREEK_LIST = """
theta alpha beta gamma delta lambda mu sigma phi varphi omega epsilon varepsilon Delta Gamma Omega Sigma Phi tau
rho eta zeta xi psi chi kappa nu
"""
_GREEK = frozenset(_GREEK_LIST.split())
_FUNCTIONS = {
    **{x: getattr(sympy, x) for x in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")},
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "ln": sympy.log,
    "max": sympy.Max,
    "min": sympy.Min,
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "log": sympy.log,
    "det": lambda x: x.det(),
}
_OPEN = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_CLOSING = frozenset({")", "]", "}", "\\}", "|", ",", "&", "\\\\", "\\end", "\\rfloor", "\\rceil", "\\rvert"})
_TURNS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_ANGLES = frozenset({"\\pi", "\\theta", "\\alpha", "\\beta"})
_DEEP = 40
_DIGITS = 50


class Unreadable(Exception):
    """The text is not mathematics from end to end."""


class _Reader:
    """A recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise Unreadable
            kind = ("number", "command", "letter", "sign")[(match.lastindex or 1) - 1]
            self._tokens.append((kind, match[match.lastindex or 1]))
            at = match.end()
        self._at, self._depth, self._bars, self._angles = 0, 0, 0, 0

    def read(self) -> Any:
        value = self._sum()
        if self._at != len(self._tokens):
            raise Unreadable
        return value

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, wanted: str | None = None) -> str:
        kind, mark = self._peek()
        if kind == "end" or (wanted is not None and mark != wanted):
            raise Unreadable
        self._at += 1
        return mark

    def _sum(self) -> Any:
        self._depth += 1
        if self._depth > _DEEP:
            raise Unreadable
        value = self._product()
        while self._peek()[1] in ("+", "-"):
            sign = self._take()
            other = self._product()
            value = value + other if sign == "+" else value - other
        self._depth -= 1
        return value

    def _product(self) -> Any:
        value, slashed, last = self._signed(), False, self._tokens[self._at - 1]
        while True:
            kind, mark = self._peek()
            if mark in ("*", "\\cdot", "\\times"):
                self._take()
                value, slashed = value * self._signed(), False
            elif mark in ("/", "\\div"):
                self._take()
                value, slashed = value / self._signed(), True
            elif mark == "\\bmod":
                self._take()
                value = sympy.Mod(value, self._signed())
            elif kind == "end" or mark in ("+", "-") or (mark in _CLOSING and not (mark == "|" and not self._bars)):
                return value
            else:
                if slashed or (kind == "number" and last[0] in ("number", "letter")):
                    raise Unreadable  # 1/2x; 3 4
                value = value * self._power()
            last = self._tokens[self._at - 1]

    def _signed(self) -> Any:
        mark = self._peek()[1]
        if mark in ("-", "+"):
            self._take()
            self._depth += 1
            if self._depth > 10 * _DEEP:
                raise Unreadable
            value = self._signed()
            self._depth -= 1
            return -value if mark == "-" else value
        return self._power()

    def _power(self) -> Any:
        value = self._atom()
        while self._peek()[1] in ("^", "!"):
            if self._take() == "!":
                value = sympy.factorial(value)
            elif self._angles and "\\circ" in (mark := [x for _, x in self._tokens[self._at : self._at + 2]]):
                self._at += 3 if mark[0] == "{" else 1  # degrees
                value = value * sympy.pi / 180
            else:
                value = value ** self._argument()
        return value

    def _argument(self) -> Any:
        """What follows ``^`` or ``\\sqrt``: a group, a signed number, or one atom."""
        kind, mark = self._peek()
        if mark == "-":
            self._take()
            return -self._argument()
        if kind == "sign" and mark not in ("(", "{", "|"):
            raise Unreadable
        return self._atom()

    def _group(self, left: str) -> Any:
        value = self._sum()
        self._take(_OPEN[left])
        return value

    def _atom(self) -> Any:
        kind, mark = self._peek()
        self._take()
        if kind == "number":
            return sympy.Rational(mark)
        if kind == "letter":
            return self._letter(mark)
        if mark in ("(", "{", "["):
            return self._group(mark)
        if mark in ("|", "\\lvert", "\\vert"):
            self._bars += 1
            value = self._sum()
            self._bars -= 1
            if self._take() not in ("|", "\\rvert", "\\vert"):
                raise Unreadable
            return sympy.Abs(value)
        if kind != "command":
            raise Unreadable
        return self._command(mark[1:])

    def _letter(self, mark: str) -> Any:
        if self._peek()[1] == "_":
            self._take()
            mark = f"{mark}_{self._index()}"
        elif mark == "e":
            return sympy.E
        elif mark == "i":
            return sympy.I
        if mark[0] in "fgh" and self._peek()[1] == "(":
            self._take()
            return sympy.Function(mark)(self._group("("))
        return sympy.Symbol(mark)

    def _index(self) -> str:
        if self._peek()[1] != "{":
            return self._take()
        self._take()
        made = ""
        while self._peek()[1] != "}":
            made += self._take()
        self._take()
        return made

    def _command(self, name: str) -> Any:
        if name == "pi":
            return sympy.pi
        if name == "infty":
            return sympy.oo
        if name in _GREEK:
            return self._letter(name)
        if name == "frac":
            return self._fraction()
        if name == "binom":
            return sympy.binomial(self._argument(), self._argument())
        if name == "sqrt":
            root = 2
            if self._peek()[1] == "[":
                self._take()
                root = self._group("[")
            return sympy.Pow(self._argument(), sympy.Rational(1) / root)
        if name in ("lfloor", "lceil"):
            value = self._sum()
            self._take("\\r" + name[1:])
            return sympy.floor(value) if name == "lfloor" else sympy.ceiling(value)
        if name == "begin":
            return self._matrix()
        if name in _FUNCTIONS:
            return self._function(name)
        raise Unreadable

    def _fraction(self) -> Any:
        kind, mark = self._peek()
        if kind == "number" and len(mark) == 2 and mark.isdigit():  # \frac12
            self._take()
            return sympy.Rational(int(mark[0]), int(mark[1]))
        if kind == "number" and len(mark) > 1:
            raise Unreadable
        top = self._atom()
        kind, mark = self._peek()
        if kind == "number" and len(mark) > 1:
            raise Unreadable
        return top / self._atom()

    def _function(self, name: str) -> Any:
        power = base = None
        if name == "log" and self._peek()[1] == "_":
            self._take()
            base = self._atom()
        if self._peek()[1] == "^":
            self._take()
            power = self._argument()
        self._angles += name in _TURNS
        if self._peek()[1] in ("(", "{"):
            left = self._take()
            values = [self._sum()]
            while self._peek()[1] == ",":
                self._take()
                values.append(self._sum())
            self._take(_OPEN[left])
        else:
            values = [self._power()]
            while self._peek()[0] in ("number", "letter") or self._peek()[1] in _ANGLES:
                values[0] = values[0] * self._power()
        self._angles -= name in _TURNS
        if power == -1:
            raise Unreadable  # the inverse function, or one over it
        if name == "log":
            values.append(base if base is not None else sympy.Integer(10))
        value = _FUNCTIONS[name](*values)
        return value if power is None else value**power

    def _matrix(self) -> Any:
        self._take("{")
        name = ""
        while self._peek()[1] != "}":
            name += self._take()
        self._take()
        if name not in ("matrix", "pmatrix", "bmatrix", "vmatrix", "Vmatrix", "smallmatrix", "array"):
            raise Unreadable
        if name == "array":
            self._index()
        rows: list[list[Any]] = [[]]
        while self._peek()[1] != "\\end":
            rows[-1].append(self._sum())
            if self._peek()[1] == "&":
                self._take()
            elif self._peek()[1] == "\\\\":
                self._take()
                if self._peek()[1] != "\\end":
                    rows.append([])
        self._take("\\end")
        self._index()
        made = sympy.Matrix(rows)
        return made.det() if name == "vmatrix" else made


def _read(text: str) -> Any:
    if re.search(r"\\(?:sum|prod|int|lim)(?![A-Za-z])", text):
        return _with_library(text)
    try:
        return _Reader(text).read()
    except (Unreadable, RecursionError):
        raise
    except Exception as error:  # shapes that do not fit, division of matrices and the like
        raise Unreadable from error


def _with_library(text: str) -> Any:
    latex2sympy = importlib.import_module("latex2sympy2_extended").latex2sympy
    letters = set(re.sub(r"\\[A-Za-z]+", "", text))
    if "'" in text or any(x.upper() in letters for x in letters if x.islower()):
        raise Unreadable  # it folds case and drops primes
    try:
        return latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=None)
    except Exception as error:
        raise Unreadable from error


def compare(gold: str, found: str, mode: str, tolerance: float) -> int | None:
    """1 where the two are equal (in mode "multiple": where the first is the second times a positive constant, -1 for a
    negative one), 0 where they are not, None where one cannot be read."""
    try:
        a, b = _read(gold), _read(found)
    except (Unreadable, RecursionError):
        return None
    tables = [isinstance(x, sympy.MatrixBase) for x in (a, b)]
    if any(tables):
        if not all(tables) or a.shape != b.shape:
            return 0
        pairs = zip(a, b, strict=True)
        return int(all(_equal(x, y, _decimals(""), _decimals(""), tolerance) for x, y in pairs))
    if mode == "multiple":
        return _multiple(a, b)
    return int(_equal(a, b, _decimals(gold), _decimals(found), tolerance))


def _decimals(text: str) -> tuple[int, int] | None:
    """Significant digits and places of a text that is one decimal number."""
    match = re.fullmatch(r"\s*-?(\d*)\.(\d+)\s*", text)
    return None if match is None else (len((match[1] + match[2]).lstrip("0")), len(match[2]))


def _equal(a: Any, b: Any, gold: tuple[int, int] | None, found: tuple[int, int] | None, tolerance: float) -> bool:
    if any(x.has(sympy.nan, sympy.zoo) for x in (a, b)):
        return False
    if a == b:
        return True
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if symbols or a.atoms(sympy.core.function.AppliedUndef) or b.atoms(sympy.core.function.AppliedUndef):
        return _agree(a, b, symbols)
    one, two = sympy.N(a, _DIGITS), sympy.N(b, _DIGITS)
    if not (one.is_number and two.is_number) or any(x in (sympy.oo, -sympy.oo) for x in (one, two)):
        return False
    if tolerance and _near(one, two, sympy.Rational(tolerance)):
        return True
    for digits, exact in ((gold, b), (found, a)):
        # A decimal stands for what it rounds, where it has digits enough; of a number that is no decimal itself.
        if digits is not None and digits[0] >= 6 and not exact.is_Integer:
            half = sympy.Rational(1, 2 * 10 ** digits[1])
            if sympy.Abs(one - two) <= half or (digits[0] >= 15 and _near(one, two, sympy.Rational(1, 10**15))):
                return True
    return _near(one, two, sympy.Rational(1, 10**40)) and _no_difference(a - b)


def _no_difference(difference: Any) -> bool:
    """Whether a number that is very small is zero: exactly, or to some hundred digits."""
    if difference.is_Rational:
        return bool(difference == 0)
    value = difference.evalf(15, maxn=500)
    parts = [x for x in value.as_real_imag() if x != 0]
    return all(x.is_Float and x._prec == 1 for x in parts)  # SymPy's own sign that no digit is known


def _near(one: Any, two: Any, share: Any) -> bool:
    largest = max(sympy.Abs(one), sympy.Abs(two))
    return bool(sympy.Abs(one - two) <= largest * share)


def _points(symbols: list[Any]) -> list[dict[Any, Any]]:
    draw = random.Random(20_260_601)  # noqa: S311  # where two functions are compared is no secret
    signs = [1, 1, -1, 1, -1, 1]
    return [{x: sympy.Rational(sign * draw.randint(101, 2999), 1009) for x in symbols} for sign in signs]


def _values(a: Any, b: Any, symbols: list[Any]) -> list[tuple[Any, Any]]:
    made = []
    for point in _points(symbols):
        one, two = sympy.N(a.subs(point), 30), sympy.N(b.subs(point), 30)
        if one.is_number and two.is_number and one.is_finite is not False and two.is_finite is not False:
            made.append((one, two))
    return made


def _agree(a: Any, b: Any, symbols: list[Any]) -> bool:
    seen = _values(a, b, symbols)
    if any(not _near(one, two, sympy.Rational(1, 10**18)) for one, two in seen):
        return False
    return len(seen) >= 4 or bool(sympy.simplify(a - b) == 0)


def _multiple(a: Any, b: Any) -> int:
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return 0
    ratios = [one / two for one, two in _values(a, b, symbols) if two != 0 and one != 0]
    if len(ratios) < 4 or any(not _near(x, ratios[0], sympy.Rational(1, 10**18)) for x in ratios):
        return 0
    return 1 if ratios[0].is_positive else -1 if ratios[0].is_negative else 0
