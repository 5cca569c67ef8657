"""What a reasoning model says once it has thought: its text without the thinking parts. Linear in the text.

What stands in a long text is remembered: it is asked for again and again, also by the engine on an event loop.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from rfx_agent.scan import forward

__all__ = ["LONG", "Said", "after_thinking"]

LONG = 4000
"""Characters from which on a text is remembered, and read on a thread where an event loop waits for it."""

_NAMES = (
    r"(?:[a-z]{1,12}[:_-])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|antThinking|reflection|scratch_?pad|cot"
    r"|inner_?monologue|chain[_-]of[_-]thoughts?)(?:[_-](?:content|process|trace|steps?|block))?"
)
# Where thinking begins and ends, in the spellings of the families that have one. A channel ends where the next begins.
_MARK = re.compile(
    rf"(?P<open><{_NAMES}(?:\s[^<>\n]{{0,80}})?>|\[(?:THINK(?:ING)?|REASONING)\]|\u25c1think\u25b7"
    r"|<\|(?:begin_of_|start_(?:of_)?)(?:thought|thinking|reasoning)\|>|<\|(?:think(?:ing)?|thought|reasoning)\|>|<\|inner_prefix\|>|<\|channel>(?:thought|analysis)\b|<unused94>(?:thought\b)?"
    r"|<\|im_start\|>think\b|<\uff5cbegin\u2581of\u2581thinking\uff5c>)"
    rf"|(?P<close></{_NAMES}\s?>|\[/(?:THINK(?:ING)?|REASONING)\]|\u25c1/think\u25b7"
    r"|<\|end_(?:of_)?(?:thought|thinking|reasoning)\|>|<\|/(?:think(?:ing)?|thought|reasoning)\|>|<\|inner_suffix\|>|<channel\|>|<unused95>"
    r"|<\|im_start\|>answer\b|<\uff5cend\u2581of\u2581thinking\uff5c>)"
    r"|(?P<channel><\|channel\|>\s?(?P<name>[A-Za-z_]{1,20})(?:[^<\n]|<\|constrain\|>){0,80}<\|message\|>)"
    r"|(?P<stop><\|(?:end|return|call)\|>(?:\s?<\|start\|>assistant)?)",
    re.IGNORECASE,
)
_BEGINS = "<[\u25c1"
_LIKELY = re.compile("<(?=[/|\uff5cA-Za-z])|\\[(?=/?[TRtr])|\u25c1")  # where a mark may begin
_ANALYSIS = re.compile(r"\s*analysis(?=\S)")  # harmony without its special tokens
_FINAL = re.compile(r"assistant\s?final(?=\S)")
_WRAP = re.compile(
    r"<\|(?:begin_of_solution|end_of_solution|start_response|end_response|start_of_turn|end_of_turn|im_end"
    r"|im_start|eot_id|endoftext|return|end)\|>|<(?:start|end)_of_turn>|<turn\|>",
    re.IGNORECASE,
)
_TURNS = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|end_of_turn|endoftext|end_of_text|end|return|eom_id|eos)\|>|</s>|<end_of_turn>|<turn\|>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>))+\s*\Z",
    re.IGNORECASE,
)  # at the end of a text that is otherwise said
_ROLE = re.compile(
    r"\s*(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|turn>)\s?(?:assistant|model)(?:<\|end_header_id\|>|\b)\s*",
    re.IGNORECASE,
)
_KEPT = 2_000_000  # characters of the texts that are remembered
_known: OrderedDict[str, Said] = OrderedDict()
_QUOTES = "`'\"\u2018\u2019\u201c\u201d"


@dataclass(frozen=True, slots=True)
class Said:
    """What follows the thinking in a text.

    Attributes:
        text: the text without its thinking; the text itself where it has none.
        open: whether a thinking part was never closed. The model was stopped while it thought, and ``text`` is "".
    """

    text: str
    open: bool = False


def after_thinking(text: str) -> Said:
    """``text`` without what the model thought.

    Understood are ``<think>`` and its kin (``thinking``, ``thought``, ``reasoning``, ``reflection``, ...), ``[THINK]``,
    the channels of harmony and of Gemma, and the marks of other families. Of harmony's channels only ``final`` is said.
    A closing mark without an opening one ends a part that the prompt's template opened. A mark that is quoted, or that
    a sentence names in passing, is none.

    Example:
        >>> after_thinking("<think>6 or 7? 7.</think>The sum is 7.").text
        'The sum is 7.'
        >>> after_thinking("<think>It may be 7, or")
        Said(text='', open=True)
    """
    if len(text) < LONG:
        return _read(text)
    said = _known.get(text)
    if said is None:
        said = _known[text] = _read(text)
        with contextlib.suppress(KeyError, RuntimeError):  # another thread was quicker
            while len(_known) > 1 and sum(map(len, [*_known])) > _KEPT:
                _known.popitem(last=False)
    return said


def _read(text: str) -> Said:
    text = _unturned(text)
    if not any(c in text for c in _BEGINS):
        begun = _ANALYSIS.match(text)
        final = None if begun is None else next(forward(_FINAL, text, reach=20, begin=begun.end()), None)
        return Said(text if final is None else text[final.end() :])
    marks = [*_marks(text)]
    closes = max((m.start() for m in marks if m["close"]), default=-1)
    parts: list[str] = []
    begin, thinking, channel, seen = 0, False, False, False
    for mark in marks:
        if mark["channel"]:
            if not thinking and not channel:
                parts = []  # what stands before the first channel is the prompt's
            elif not thinking:
                parts.append(text[begin : mark.start()])
            if mark["name"].lower() == "final":
                parts = []
            thinking, channel = mark["name"].lower() != "final", True
        elif mark["stop"]:
            if not channel:
                continue
            if not thinking:  # the final message has ended; thinking without one is all that there is
                return Said("".join([*parts, text[begin : mark.start()]]))
            continue
        elif _quoted(text, mark):
            continue
        elif mark["open"]:
            if thinking or (mark.start() > closes and _in_passing(text, mark)):
                continue
            parts.append(text[begin : mark.start()])
            thinking = True
        elif thinking:
            thinking = False
        else:
            parts = []  # opened by the template
        begin, seen = mark.end(), True
    if not seen:
        return Said(text)
    if thinking:
        return Said("", open=True)
    parts.append(text[begin:])
    return Said(_WRAP.sub("", "".join(parts)))


def _marks(text: str) -> Iterator[re.Match[str]]:
    end = 0
    for likely in forward(_LIKELY, text, reach=3):
        if likely.start() >= end and (mark := _MARK.match(text, likely.start())) is not None:
            yield mark
            end = mark.end()


def _unturned(text: str) -> str:
    """``text`` without the marks of a turn around it, where a server left them in."""
    if (role := _ROLE.match(text)) is not None:
        text = text[role.end() :]
    if (turns := _TURNS.search(text, max(0, len(text) - 120))) is not None:
        text = text[: turns.start()]
    return text


def _quoted(text: str, mark: re.Match[str]) -> bool:
    before, after = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    if not before or not after or before not in _QUOTES or after not in _QUOTES:
        return False
    return text[mark.start() - 2 : mark.start()] != "``"  # a code block ends before it


def _in_passing(text: str, mark: re.Match[str]) -> bool:
    """Whether a sentence names the mark: words on both sides of it on its line, a space between."""
    before = text[max(0, mark.start() - 200) : mark.start()].rpartition("\n")[2]
    after = text[mark.end() : mark.end() + 2]
    return bool(before.strip()) and before.endswith(" ") and after[:1] == " " and after[1:].islower()
