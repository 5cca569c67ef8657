"""One round trip over many requests, each a call of the script. Needs redis-py."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rfx_agent._extras import need
from rfx_agent.budgets.accounting import Book, micros
from rfx_agent.budgets.backend import Backend, Credit, Failure, Unknown
from rfx_agent.budgets.limits import Account
from rfx_agent.budgets.operations import Operation
from rfx_agent.budgets.redis.calls import SCRIPT, account_of, answer_of, call_of, deposit_call, packed, reservation_of
from rfx_agent.budgets.redis.failures import elsewhere, failure_of, refusal
from rfx_agent.budgets.redis.url import Place
from rfx_agent.errors import StoreError

__all__ = ["SCHEMA", "Database"]

SCHEMA = 1
"""Number of what this version writes, kept in the key ``mark``."""

_redis: Any = need("redis.exceptions", "redis")
_log = logging.getLogger("rfx_agent")
_KEYS = ("mark", "accounts", "holds", "records", "open", "ended")
_NAME = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()  # as Redis calls it
_ROUNDS = 1000  # calls of one request that finds more reservations to end first
_PAGE = 500
_LONGEST = 2**52  # microseconds that something is remembered: 142 years


class Database(Backend):
    """Everything that is done to the keys.

    Args:
        place: where they are.
        prefix: what their names begin with.
        clock: seconds since the epoch; None for the server's own, which all machines share.
        keep: microseconds that what has ended is remembered.
        timeout: seconds that a connection or an answer is waited for.
    """

    def __init__(
        self, place: Place, *, prefix: str, clock: Callable[[], float] | None, keep: int, timeout: float
    ) -> None:
        self.place = place
        self.shown = place.shown
        self._clock = clock
        self._keep = keep
        # One hash tag: in a cluster all of them are in one slot.
        self._keys = [f"{{{prefix}}}{name}".encode() for name in _KEYS]
        waits = {"socket_timeout": timeout, "socket_connect_timeout": min(timeout, 10.0), "socket_keepalive": True}
        if "path" in place.options:
            del waits["socket_keepalive"]
        self._make: Callable[[], Any] = lambda: place.connection(**{**place.options, **waits, "protocol": 2})
        self._connection: Any = None
        self._mark: bytes | None = None
        self._warned = False

    def failure_of(self, error: Exception) -> Failure:
        """See ``failures.failure_of``."""
        return failure_of(error, self.place)

    def run(
        self,
        operations: Sequence[Operation],
        credits: Sequence[Credit],  # noqa: A002  # the word of the ratio
        *,
        counting: bool = True,
    ) -> list[Any]:
        """See ``Backend.run``. Each operation is done, or not, by itself."""
        answers: list[Any] = [None] * len(operations)
        # Before the reservations, which may need them.
        calls = [deposit_call(x.claim, micros(max(0.0, self.tick() - x.since))) for x in credits]
        places = []
        for i, operation in enumerate(operations):
            try:
                calls.append(call_of(operation))
                places.append(i)
            except Exception as error:  # noqa: BLE001  # such as a record that is not text: the other operations go on
                answers[i] = StoreError(f"{self.shown}: {type(error).__name__}: {error}")
        replies = self._call(calls, counting)
        for i, reply in zip(places, replies[len(credits) :], strict=True):
            failed = isinstance(reply, Exception)
            answers[i] = refusal(reply, self.place) if failed else answer_of(operations[i], reply)
        return answers

    def seen(self, prefix: str) -> list[Account]:
        """See ``Backend.seen``."""
        mark, accounts, holds, _, waiting, _ = self._keys
        book = Book(keep_for=self._keep)
        with self._reading() as ask:
            if not self._known(ask(b"GET", mark)):
                return []
            now = self._now(ask)
            # The accounts first: a reservation that expires between the two does not expire twice then.
            for name, row in self._rows(ask, accounts):
                account = account_of(name, row)
                book.accounts[account.name] = account
            late = ask(b"ZRANGEBYSCORE", waiting, b"-inf", b"%d" % now)
            for i in range(0, len(late), _PAGE):
                some = late[i : i + _PAGE]
                for name, row in zip(some, ask(b"HMGET", holds, *some), strict=True):
                    if row is not None:
                        reservation = reservation_of(name, row)
                        book.reservations[reservation.id] = reservation
                        book.expire(reservation.id, now)
        return [x.seen(now) for name, x in sorted(book.accounts.items()) if name.startswith(prefix)]

    def prune(self, older: int, *, shrink: bool) -> tuple[int, int]:
        """See ``Backend.prune``."""
        self._ready()
        now = self._now(self._ask)
        dropped, ended, found = 0, 0, _PAGE
        while found == _PAGE:  # a call each: others come in between
            found = self._gone([b"prune", b"%d" % max(0, now + self._keep - older), b"%d" % _PAGE])
            ended += found
        idle: list[bytes] = []
        for name, row in self._rows(self._ask, self._keys[1]):
            if account_of(name, row).idle(now - older):
                idle += [name, row]
            if len(idle) >= 2 * _PAGE:
                dropped, idle = dropped + self._gone([b"drop", *idle]), []
        dropped += self._gone([b"drop", *idle])
        if shrink and b"aof_enabled:1" in self._ask(b"INFO", b"persistence"):
            self._ask(b"BGREWRITEAOF")
        return dropped, ended

    def disconnect(self) -> None:
        """See ``Backend.disconnect``."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _gone(self, call: list[bytes]) -> int:
        """How many a call deleted."""
        (reply,) = self._call([call], counting=False)
        if isinstance(reply, Exception):
            raise reply
        return int(reply[1])

    def _call(self, calls: Sequence[list[bytes]], counting: bool) -> list[Any]:
        """What the script replies to each of ``calls``: a list, or an error that concerns this one alone."""
        self._ready()
        replies: dict[int, Any] = {}
        todo = list(range(len(calls)))
        for _ in range(_ROUNDS):
            got = self._exchange([self._script(calls[i], counting) for i in todo])
            self._look(got)
            replies.update(zip(todo, got, strict=True))
            unknown = [i for i in todo if isinstance(replies[i], _redis.NoScriptError)]
            todo = [i for i in todo if i in unknown or replies[i] == [b"again"]]
            if not todo:
                return [replies[i] for i in range(len(calls))]
            if unknown:  # somebody made the server forget it
                self._exchange([(b"SCRIPT", b"LOAD", SCRIPT)])
        raise StoreError(f"{self.shown}: reservations expire faster than they can be ended, or scripts are forgotten")

    def _look(self, replies: Sequence[Any]) -> None:
        """Whether these are the budgets that were here before, on a server that takes requests.

        Raises:
            StoreError: they are not.
            Exception: the server's, where it does nothing now; ``Unknown`` where it has done some.
        """
        if [b"mark"] in replies:
            self._mark = None
            self.disconnect()
            raise StoreError(self._replaced())
        away = [x for x in replies if isinstance(x, Exception) and elsewhere(x)]
        if away and len(away) == len(replies):
            raise away[0]
        if away:
            raise Unknown from away[0]

    def _script(self, call: list[bytes], counting: bool) -> tuple[bytes, ...]:
        now = b"" if self._clock is None else b"%d" % micros(self._clock())
        head = (self._mark or b"", now, b"%d" % min(self._keep, _LONGEST), b"1" if counting else b"0")
        return (b"EVALSHA", _NAME, b"%d" % len(self._keys), *self._keys, *head, *call)

    def _ready(self) -> None:
        """There is a connection, to a server that keeps what it is given, with the script and the mark."""
        if self._connection is not None:
            return
        made = self._make()
        made.connect()
        self._connection = made
        try:
            self._begin()
        except Unknown as error:  # nothing was asked yet
            raise error.__cause__ or error from None
        except BaseException:
            self.disconnect()
            raise

    def _begin(self) -> None:
        info, mark, loaded = self._exchange(
            [(b"INFO",), (b"GET", self._keys[0]), (b"SCRIPT", b"LOAD", SCRIPT)],
        )
        for reply in (mark, loaded):
            if isinstance(reply, Exception):
                raise reply
        self._check(info)
        if mark is None:
            fresh = f"{SCHEMA} {uuid.uuid4().hex}".encode()
            made, mark = self._exchange([(b"SET", self._keys[0], fresh, b"NX"), (b"GET", self._keys[0])])
            if isinstance(made, Exception):
                raise made
        self._known(mark)
        mark = b" ".join(mark.split(b" ")[:2])  # without the count of the keys
        before, self._mark = self._mark, mark
        if before not in (None, mark):
            self._mark = None
            raise StoreError(self._replaced())

    def _check(self, info: Any) -> None:
        """Whether the server keeps what it is given.

        Raises:
            StoreError: it deletes what was not used for long.
        """
        if isinstance(info, Exception):
            _log.warning("%s: cannot look at its settings: %s", self.shown, self.place.clean(str(info)))
            return
        said = dict(x.split(b":", 1) for x in info.splitlines() if b":" in x)
        policy = said.get(b"maxmemory_policy", b"").decode()
        if policy.startswith("allkeys"):
            raise StoreError(
                f"{self.shown}: maxmemory-policy is {policy}: when its memory is full, this server deletes budgets. "
                "Set it to noeviction, or give another server"
            )
        if said.get(b"aof_enabled") == b"0" and not self._warned:
            self._warned = True
            _log.warning(
                "%s: appendonly is off: if this server dies, what was spent since its last snapshot is forgotten, and "
                "runs pay again; set appendonly yes",
                self.shown,
            )

    def _known(self, mark: bytes | None) -> bool:
        """Whether there is anything.

        Raises:
            StoreError: of another schema.
        """
        if mark is None:
            return False
        schema = mark.partition(b" ")[0]
        if schema != b"%d" % SCHEMA:
            raise StoreError(
                f"{self.shown}: the keys of budgets have schema {schema.decode(errors='replace')[:20]}, and this "
                f"version knows schema {SCHEMA}; use the version that wrote them, or give another prefix"
            )
        return True

    def _replaced(self) -> str:
        return (
            f"{self.shown}: the budgets, or one of their keys, were deleted or replaced while they were in use; what "
            "was spent before is not in what is there, or not all of it. Look for FLUSHDB or DEL, or for a server that "
            "restarts without its data. The next call goes on with what is there"
        )

    def _exchange(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """The replies to ``commands`` in one round trip; an error is one.

        Raises:
            Unknown: the connection broke, or no answer came in time.
        """
        connection = self._connection
        replies: list[Any] = []
        try:
            connection.send_packed_command([packed(commands)], check_health=False)
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except _redis.ResponseError as error:
                    replies.append(error)
        except BaseException as error:
            self.disconnect()  # what else comes on it answers nobody's question
            if isinstance(error, (_redis.RedisError, OSError)):
                raise Unknown from error
            raise
        return replies

    def _ask(self, *command: bytes) -> Any:
        """The reply to one command that reads."""
        (reply,) = self._exchange([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    @contextmanager
    def _reading(self) -> Iterator[Callable[..., Any]]:
        """Asks on a connection of its own."""
        connection = self._make()

        def ask(*command: bytes) -> Any:
            connection.send_command(*command, check_health=False)
            return connection.read_response()

        try:
            connection.connect()
            yield ask
        finally:
            connection.disconnect()

    def _rows(self, ask: Callable[..., Any], key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Everything in a hash, some of it twice perhaps."""
        cursor = b"0"
        while True:
            cursor, flat = ask(b"HSCAN", key, cursor, b"COUNT", b"%d" % _PAGE)
            yield from zip(flat[::2], flat[1::2], strict=True)
            if int(cursor) == 0:
                return

    def _now(self, ask: Callable[..., Any]) -> int:
        if self._clock is not None:
            return micros(self._clock())
        seconds, rest = ask(b"TIME")
        return int(seconds) * 1_000_000 + int(rest)
