"""The invariant, read from a complete log: at no moment was more granted than a limit allows.

A call's moment lies between the two times that its process wrote down. For each grant, the audit adds up what was
certainly open or certainly spent within the window at any such moment; if that and the grant's own amount are above
the limit, the limit was broken, whatever the real order. What is uncertain counts for the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Book", "audit"]

_CREDIT_SLACK = 5.0  # seconds that a deposit may be written later than it was made
_NEVER = float("inf")


@dataclass(slots=True)
class Book:
    """What the log says of one account, in the account's unit.

    Attributes:
        kind, unit, most, seconds, share: of the claims.
        granted, spent, refused, replaced: totals; ``spent`` of what was settled, ``replaced`` of reservations that
            another process took over.
        tightest: the largest sum that was certainly there at a grant, the grant included.
        over: grants that certainly broke the limit, with the sum.
    """

    kind: str
    unit: str
    most: int
    seconds: float
    share: float
    granted: int = 0
    spent: int = 0
    refused: int = 0
    tightest: int = 0
    over: list[tuple[str, int, float]] = field(default_factory=list)
    rows: list[tuple[str, str, float, float, int, float]] = field(default_factory=list, repr=False)


def audit(entries: Iterable[dict[str, Any]]) -> dict[str, Book]:
    """A ``Book`` for each account that the log names."""
    books: dict[str, Book] = {}
    ends: dict[tuple[str, str], list[Any]] = {}  # (id, token) → [settling, settled, actual]
    asked: defaultdict[str, list[float]] = defaultdict(list)  # id → when it was asked for
    deposits: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for entry in entries:
        match entry["op"]:
            case "reserve":
                began, ended = entry["t"]
                for account, kind, unit, amount, most, seconds, share in entry["claims"]:
                    book = books.setdefault(account, Book(kind, unit, most, seconds, share))
                    if account in entry.get("refused", ()):
                        book.refused += 1
                    if "token" in entry:
                        book.granted += amount
                        book.rows.append((entry["id"], entry["token"], began, ended, amount, entry["for"]))
                asked[entry["id"]].append(began)
            case "asked":
                asked[entry["id"]].append(entry["t"])
            case "settling":
                ends[entry["id"], entry["token"]] = [entry["t"], _NEVER, entry["actual"]]
            case "settled":
                ends[entry["id"], entry["token"]][1] = entry["t"]
            case "deposit":
                for account, amount in entry["claims"].items():
                    deposits[account].append((entry["t"], amount))
    for account, book in books.items():
        _check(book, ends, asked, deposits[account])
    return books


def _check(
    book: Book,
    ends: dict[tuple[str, str], list[Any]],
    asked: dict[str, list[float]],
    credit: list[tuple[float, int]],
) -> None:
    if not book.rows:
        return
    flight = book.kind == "in_flight"
    began, ended, amount, actual, settling, gone = (np.empty(len(book.rows)) for _ in range(6))
    for i, (name, token, b, e, a, seconds) in enumerate(book.rows):
        end = ends.get((name, token))
        began[i], ended[i], amount[i] = b, e, a
        settling[i] = end[0] if end else _NEVER
        actual[i] = 0 if flight else end[2].get(book.unit, 0) if end else a
        # A reservation that nobody settled expires when its time is over, or when somebody asks for its call again,
        # even in vain.
        gone[i] = min([b + seconds, *(t for t in asked[name] if t > b)])
        if end:
            book.spent += 0 if flight else int(actual[i])
    least = np.minimum(amount, actual)
    times, amounts = np.array([t for t, _ in credit] or [0.0]), np.array([n for _, n in credit] or [0])
    for i in np.argsort(began):
        b, e = began[i], ended[i]
        before = ended <= b
        before[i] = False
        still = before & (settling > e) & (gone > e)
        held = amount[still].sum()
        if not flight:
            spent = before & ~still & (np.minimum(settling, gone) > e - book.seconds)
            held += least[spent].sum()
        room = float(book.most)
        if book.kind == "ratio":
            room += book.share * amounts[(times <= e) & (times > b - book.seconds - _CREDIT_SLACK)].sum()
        total = int(held + amount[i])
        book.tightest = max(book.tightest, total)
        if total > room + 1e-6:
            book.over.append((book.rows[i][0], total, room))
