"""Requests as the script takes them, and what it keeps as the book's rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from rfx_agent.budgets.accounting import AccountRow, ReservationRow, distinct, micros
from rfx_agent.budgets.limits import Claim, Refused, Replayed
from rfx_agent.budgets.operations import Keep, Operation, Release, Reserve, Settle

__all__ = ["SCRIPT", "account_of", "answer_of", "call_of", "deposit_call", "packed", "reservation_of", "text_of"]

SCRIPT = b"".join(files(__package__).joinpath(x).read_bytes() for x in ("amounts.lua", "book.lua"))
_SPAN = 2**52  # microseconds: 142 years, and twice that is a number that Lua holds exactly
_MOST = 10**24  # of a limit: more than any account can come to


def call_of(operation: Operation) -> list[bytes]:
    """An operation as the script's arguments."""
    match operation:
        case Reserve(wanted, time):
            head = [b"reserve", _bytes(wanted.id), _bytes(wanted.token), b"%d" % time]
            return head + _claims(distinct(wanted.claims))
        case Settle(reservation, actual, record):
            head = [b"settle", _bytes(reservation.id), _bytes(reservation.token)]
            head += [b"0", b""] if record is None else [b"1", _bytes(record)]
            return head + [x for unit, amount in actual.items() for x in (_bytes(unit), b"%d" % amount)]
        case Release(reservation):
            return [b"release", _bytes(reservation.id), _bytes(reservation.token)]
        case Keep(id, record):  # the port's word
            return [b"keep", _bytes(id), _bytes(record)]
    raise TypeError(f"no request of this store: {type(operation).__name__}")


def deposit_call(claim: Claim, age: int) -> list[bytes]:
    """Normal traffic of ``age`` microseconds ago."""
    return [b"deposit", b"%d" % age, *_claims([claim])]


def answer_of(operation: Operation, reply: list[bytes]) -> Any:
    """What the script replied, as the port answers."""
    said, *rest = reply
    match said:
        case b"granted":
            return operation.grants
        case b"refused":
            return Refused(tuple(x.decode() for x in rest[1:]), int(rest[0]) / 1e6 if rest[0] else None)
        case b"replayed":
            return Replayed(text_of(rest[0]))
        case b"kept":
            return text_of(rest[0])
    return None


def account_of(name: bytes, row: bytes) -> AccountRow:
    """An account as the script keeps it."""
    kind, unit, *rest = json.loads(text_of(row))
    most, span, granted, spent, reserved, lost, refused, peak = map(int, rest[:8])
    account = AccountRow(text_of(name), kind, unit, most, span, granted, spent, reserved, lost, refused, peak)
    if span:
        account.buckets, account.credits = _series(*rest[10:13]), _series(*rest[14:17])
    return account


def reservation_of(id: bytes, row: bytes) -> ReservationRow:  # noqa: A002  # the field's word
    """A reservation as the script keeps it, without its record."""
    token, state, due, ended, *rest = json.loads(text_of(row))
    claims = tuple(zip(rest[::3], rest[1::3], map(int, rest[2::3]), strict=True))
    return ReservationRow(text_of(id), token, int(state), claims, int(due), int(ended))


def packed(commands: Iterable[Sequence[bytes]]) -> bytes:
    """Commands as they are sent. The client's own packing takes as long as the script."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for x in command:
            parts += (b"$%d\r\n" % len(x), x, b"\r\n")
    return b"".join(parts)


def text_of(found: bytes) -> str:
    """A model may write halves of characters."""
    return found.decode("utf-8", "surrogatepass")


def _series(last: str, amount: str, others: str) -> dict[int, int]:
    """Amounts by bucket; one bucket may stand there more than once."""
    found: dict[int, int] = {}
    for bucket, _, n in (x.partition(":") for x in [*others.split(), *([f"{last}:{amount}"] if last else [])]):
        found[int(bucket)] = found.get(int(bucket), 0) + int(n)
    return found


def _claims(claims: Iterable[Claim]) -> list[bytes]:
    found: list[bytes] = []
    for x in claims:
        span, most = min(micros(x.seconds), _SPAN), min(x.most, _MOST)
        found += [_bytes(x.account), _bytes(x.kind), _bytes(x.unit), b"%d" % x.amount, b"%d" % most, b"%d" % span]
        found.append(repr(float(x.share)).encode())
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
