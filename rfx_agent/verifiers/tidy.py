r"""Mathematics as models write it, in one spelling: LaTeX without decoration. Linear in the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

__all__ = ["mathematical", "outside", "split", "tidy"]

_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": r"\div ",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∅": r"\emptyset ",
    "…": r"\ldots ",
    "。": ".",
    "\u00b5": r"\mu ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "′": "'",
    "\u2019": "'",
    "⁄": "/",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "δ": r"\delta ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "σ": r"\sigma ",
    "φ": r"\phi ",
    "ω": r"\omega ",
    "ε": r"\epsilon ",
    "Δ": r"\Delta ",
}
_FULL = {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}
_TABLE = str.maketrans(_SIGNS | _FULL)
_UP = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_DOWN = dict(zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True))
_SCRIPTS = re.compile(rf"[{''.join(_UP)}]+|[{''.join(_DOWN)}]+")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")  # an escape too many
_COMMA = re.compile(r"\s?\{\s?,\s?\}\s?")
_VULGAR = re.compile(r"(\d?)\s?([¼½¾⅐-⅞])")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ROOT = re.compile(r"([√∛∜])\s?(?:(\d+(?:\.\d+)?|[A-Za-z])|(?=[({]))")
_DROP = re.compile(
    r"(?<!\\)\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|bm|boldsymbol)(?![A-Za-z])\.?|(?<!\\)\\!\s*"
)
_SPACE = re.compile(
    r"(?<!\\)\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|(?<!\\)\\(?:[,;: ]|hspace\{[^{}]{0,10}\})|~|&nbsp;"
)
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_TIGHT = re.compile(r"\\frac\s?(\d)\s?(\d)(?!\d)")
_ON = re.compile(r"(,\s?)\.\.\.")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal|up)?|math(?:rm|bf|it|tt|sf)|mbox|operatorname\*?)\s?\{([^{}]*)\}"
)
_NAMES = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|gcd|lcm|det"
_BARE_NAME = re.compile(rf"(?<![\\A-Za-z])({_NAMES}|pi|infinity|theta|alpha|beta|gamma)(?![A-Za-z])")
_BARE_PI = re.compile(r"(?<=\d)pi(?![A-Za-z])|(?<![\\A-Za-z])inf(?![A-Za-z])")
_SYNONYMS = {
    r"\lt": "<",
    r"\gt": ">",
    r"\le": r"\leq",
    r"\ge": r"\geq",
    r"\ne": r"\neq",
    r"\dots": r"\ldots",
    r"\varnothing": r"\emptyset",
}
_SYNONYM = re.compile(r"\\(?:lt|gt|le|ge|ne|dots|cdots|dotsc|varnothing)(?![A-Za-z])")
_MATHS = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<letters>[A-Za-z]+)|(?P<sign>\\[{}|\\]|[-+*/^_(){}\[\]|!,;:=<>.&'%]|\s)"
)
_KNOWN = frozenset(
    rf"{_NAMES}|frac|pi|infty|cdot|times|div|pm|mp|cup|cap|in|leq|geq|neq|approx|ldots|binom|lfloor|rfloor|lceil|rceil|"
    "lvert|rvert|vert|begin|end|emptyset|sum|prod|int|lim|to|theta|alpha|beta|gamma|delta|lambda|mu|sigma|phi|varphi|"
    "omega|epsilon|varepsilon|Delta|Gamma|Omega|Sigma|Phi|tau|rho|eta|zeta|xi|psi|chi|kappa|nu|overline|bmod|circ|"
    "mid|setminus|hat|bar|vec|prime|langle|rangle|equiv|propto|sim".split("|")
)
_LITTLE = frozenset({*("is", "it", "of", "or", "on", "no", "so", "to", "if", "as", "at", "be", "by", "do", "we", "an")})
_RUNS = frozenset({"abc", "xyz", "bcd", "pqr", "rst", "uvw", "abs", "dx", "dy", "dt"})


def tidy(text: str) -> str:
    """``text`` in one spelling: unicode signs as LaTeX, no styles, no dollars around, one space between words."""
    text = unicodedata.normalize("NFC", text).translate(_TABLE)
    if "\\\\" in text and "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _VULGAR.sub(lambda m: f"{m[1]}{' ' if m[1] else ''}{_fraction(m[2])}", text)
    text = _ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)
    text = _SCRIPTS.sub(_script, text)
    text = _TIGHT.sub(r"\\frac{\1}{\2}", _FRAC.sub(r"\\frac", _SPACE.sub(" ", _DROP.sub("", text))))
    text = _ON.sub(r"\1\\ldots ", text)
    text = (
        _COMMA.sub(",", text.replace('\\"', '"'))
        .strip('"')
        .replace("**", "^" if re.search(r"\w\s?\*\*\s?[\w(-]", text) else "")
        .replace("°", r"^\circ ")
    )
    text = _undollared(text)
    text = _SYNONYM.sub(lambda m: _SYNONYMS.get(m[0], r"\ldots"), text)
    text = _BARE_NAME.sub(lambda m: rf"\{m[1]} ".replace("infinity", "infty"), text)
    text = _BARE_PI.sub(lambda m: r"\pi " if m[0] == "pi" else r"\infty ", text)
    text = text.replace("<=", r"\leq ").replace(">=", r"\geq ").replace("!=", r"\neq ").replace("\\%", "%")
    text = " ".join(text.replace("\\$", " ").split()) if text.count("\\$") > 1 else " ".join(text.split())
    return text.strip().rstrip(".").strip() if not text.endswith("..") else text.strip()


def _fraction(sign: str) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", sign).partition("\u2044")
    return f"{top}/{bottom}"


def _script(run: re.Match[str]) -> str:
    text = run[0]
    return f"^{{{''.join(_UP[c] for c in text)}}}" if text[0] in _UP else f"_{{{''.join(_DOWN[c] for c in text)}}}"


def _undollared(text: str) -> str:
    """``text`` without the marks of mathematics; a single ``$`` before or behind a number is money and stays."""
    text = text.replace("\\(", " ").replace("\\)", " ").replace("\\[", " ").replace("\\]", " ").replace("$$", " ")
    marks = text.replace("\\$", "").count("$")
    if marks and marks % 2 == 0:
        text = re.sub(r"(?<!\\)\$", "", text)
    return text.strip()


def words_of(text: str) -> str:
    r"""``text`` without ``\text{}`` and its kin: what they hold stays."""
    for _ in range(3):
        bare = _STYLE.sub(lambda m: m[1] if len(m[1]) == 1 else f" {m[1]} ", text)
        if bare == text:
            break
        text = bare
    return " ".join(text.split())


def outside(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """What ``pattern`` finds outside of all brackets; it has to find the brackets too."""
    depth = 0
    for token in pattern.finditer(text):
        if token[0] in ("(", "[", "{", "\\{"):
            depth += 1
        elif token[0] in (")", "]", "}", "\\}"):
            depth -= 1
        elif depth == 0:
            yield token


def split(text: str, *, words: bool = True) -> tuple[list[str], set[str]]:
    """The parts of ``text`` between commas, semicolons and, with ``words``, "and" and "or", outside of all brackets;
    and what stood between them."""
    parts: list[str] = []
    between: set[str] = set()
    begin = 0
    for token in outside(_SPLIT, text):
        mark = token[0]
        if words or mark.strip() in (",", ";"):
            parts.append(text[begin : token.start()])
            between.add(mark.strip(" ,;").casefold() or mark.strip())
            begin = token.end()
    parts.append(text[begin:])
    return [x.strip() for x in parts], between


_SPLIT = re.compile(r"\\[{}]|[()\[\]{}]|[,;]\s?(?:(?:and|or)\s)?|(?<=[\s)\d}])(?:and|or)(?=[\s(\d])", re.IGNORECASE)


def mathematical(text: str) -> bool:
    """Whether ``text`` is clearly mathematics: nothing in it can be a word, a code, a date or a score."""
    at, last, runs, signs = 0, "", 0, 0
    if not text or len(text) > 4000 or (re.fullmatch(r"[\d\s:/.-]*", text) and _MARKED_NUMBER.search(text)):
        return False
    for token in _MATHS.finditer(text):
        if token.start() != at:
            return False
        at = token.end()
        kind = token.lastgroup or ""
        if kind == "command":
            if token[0][1:] not in _KNOWN:
                return False
            signs += 1
        elif kind == "letters":
            run = token[0]
            if run in _LITTLE or (run.istitle() and run.lower() in _LITTLE):
                return False
            if len(run) > 2 and run not in _RUNS and not _environment(text, token.start()):
                return False
            runs += len(run) > 1
        elif kind == "number":
            if last == "letters":  # x2 and H2O are names
                return False
        elif token[0] in "+-*/^_=<>!|" and token[0].strip():
            signs += 1
        last = kind if token[0].strip() else ""
    letters_only = not re.search(r"\d", text) and not signs
    return at == len(text) and not (letters_only and (runs or " " in text)) and not _MARKED_NUMBER.search(text)


def _environment(text: str, at: int) -> bool:
    return text[max(0, at - 7) : at].endswith(("\\begin{", "\\end{"))


# Dates, times, scores, telephone and version numbers; numbers of another base.
_MARKED_NUMBER = re.compile(
    r"^\d+-\d+(?:-\d+)*$|\d:\d|\d/\d+/\d|\d\.\d+\.\d|^0[xXbBoO]|\d_\{?\d|^\d+[A-Za-z]+\d|^0\d+[-/]|^0\d{2,}(?![.\d])|^\d+-\d+\s"
)
