"""Whether a provider refused a parameter of a request, and which: read off what its error says."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["MOST_SAID", "REFUSALS", "refused_parameter"]

REFUSALS = frozenset({400, 403, 404, 422, 501})
"""Statuses under which a server may say that it does not take a parameter."""

MOST_SAID = 16_000
"""Characters of an error that are looked at."""

_UNSUPPORTED = re.compile(
    r"unsupported|not support|only the default|may only be|unrecogni[sz]ed|unknown|unexpected|deprecated"
    r"|extra inputs|not (permitted|allowed)|cannot (both )?be (set|used|specified|combined)"
    r"|must be greater than .?thinking",  # Anthropic's, of a max_tokens below what the model may think
    re.IGNORECASE,
)
# Parameter → the words that name it in a refusal, and whether the refusal must also say "unsupported" (a value out of
# range is the caller's to correct).
_NAMED: dict[str, tuple[re.Pattern[str], bool]] = {
    "logprobs": (re.compile(r"log_?prob", re.IGNORECASE), False),
    "max_tokens": (re.compile(r"max_tokens|max_?(output|completion|new)_?tokens|maxTokens|num_predict"), True),
    "temperature": (re.compile(r"\btemperature\b", re.IGNORECASE), True),
    "seed": (re.compile(r"\bseed\b", re.IGNORECASE), True),
    "n": (
        re.compile(r"['\"`]n['\"`]|\bn\b ?(>|=|!=|must|should|value|is )|n_cmpl|(multiple|number of) c(hoice|omple)"),
        False,
    ),
}


def refused_parameter(sent: Collection[str], said: str, *, strict: bool = False) -> str | None:
    """The parameter among ``sent`` that ``said``, the text of an error, says is not taken; None where there is none.

    Args:
        sent: ``logprobs``, ``max_tokens``, ``temperature``, ``seed`` or ``n``: those that the request had.
        said: what the error says.
        strict: whether the text must say of every parameter that it is unsupported, because nothing else tells that
            the error is a refusal.

    Example:
        >>> refused_parameter(["temperature"], "Unsupported value: 'temperature' does not support 0.6")
        'temperature'
    """
    said = said[:MOST_SAID]
    for parameter, (words, unsupported) in _NAMED.items():
        told = not (unsupported or strict) or _UNSUPPORTED.search(said)
        if parameter in sent and told and words.search(said):
            return parameter
    return None
