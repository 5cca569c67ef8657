"""What a learned policy has seen, shared by the workers of several processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rfx_agent._forks import Lock
from rfx_agent.budgets.sql.url import place_of
from rfx_agent.checks import MOST_SECONDS, number
from rfx_agent.errors import ConfigError, StoreError
from rfx_agent.policies.belief import Belief

__all__ = ["SQLPolicyStore"]

_RECONNECTS = 4  # tries while the database cannot be reached
_GRACE = 1.0  # seconds after the timeout, for the answer that says what was waited for


class SQLPolicyStore:
    """A ``policies.PolicyStore`` in a database, beside the budgets or elsewhere. Holds no connection between calls.

    Both methods raise ``StoreError`` where the database cannot be reached. When the connection breaks while ``add``
    commits, nobody knows whether it was added; the message says so, and adding again may count it twice.

    Args:
        url: see ``SQLStore``.
        name: which belief, where several policies share a database.
        timeout: seconds that a call waits for others' locks, and for a server that does not answer.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> SQLPolicyStore("sqlite:///budgets.db", name="solver")
        SQLPolicyStore('sqlite:///budgets.db', name='solver')
    """

    def __init__(self, url: str, *, name: str = "default", timeout: float = 30.0) -> None:
        if not isinstance(name, str) or not name or "\0" in name:
            raise ConfigError(f"sql policy store: name is {name!r}; give a text such as 'default'")
        number("sql policy store: timeout", timeout, above=0, unit="seconds", most=MOST_SECONDS)
        self._place = place_of(url)
        self._name = name
        self._timeout = float(timeout)
        self._turn = Lock()  # one call at a time: on a server that answers no more, one thread hangs and not many
        from rfx_agent.budgets.sql.engine import engine_for

        self._engine = engine_for(self._place, self._timeout)
        self._prepared = False

    def __repr__(self) -> str:
        return f"SQLPolicyStore({self._place.shown!r}, name={self._name!r})"

    def load(self) -> Belief:
        """Everything that was added so far."""
        from rfx_agent.budgets.sql import tables as _tables

        def read(connection: Any) -> Belief:
            return _belief(connection.execute(_tables.read_belief, {"key": self._name}).scalar_one_or_none())

        return self._bounded(read, writes=False)

    def add(self, seen: Belief) -> Belief:
        """Add ``seen`` and return the sum."""
        from rfx_agent.budgets.sql import tables as _tables

        def change(connection: Any) -> Belief:
            opened = {"name": self._name, "belief": Belief().to_json()}
            connection.execute(_tables.open_belief(connection.dialect.name), opened)
            text = connection.execute(_tables.lock_belief, {"key": self._name}).scalar_one()
            total = _belief(text) + seen
            connection.execute(_tables.update_belief, {"key": self._name, "belief": total.to_json()})
            return total

        return self._bounded(change, writes=True)

    def _bounded(self, work: Callable[[Any], Belief], *, writes: bool) -> Belief:
        """What ``work`` answers, on a thread of its own: a server that stopped is not waited for without end."""
        ends = time.monotonic() + self._timeout
        answer: Future[Belief] = Future()

        def run() -> None:
            try:
                answer.set_result(self._transact(work, writes, ends))
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                answer.set_exception(error)
            finally:
                self._turn.release()

        if self._turn.acquire(timeout=self._timeout):
            threading.Thread(target=run, name="rfx-beliefs", daemon=True).start()
            try:
                return answer.result(max(0.0, ends - time.monotonic()) + _GRACE)
            except TimeoutError:
                pass
        raise StoreError(f"{self._place.shown}: no answer within {self._timeout:g} s; look for a server that stopped")

    def _transact(self, work: Callable[[Any], Belief], writes: bool, ends: float) -> Belief:
        from rfx_agent.budgets.backend import Unknown
        from rfx_agent.budgets.sql.failures import failure_of

        tries = 0
        while True:
            try:
                return self._once(work, writes)
            except Exception as error:  # noqa: BLE001  # the database's, of many classes
                failure = failure_of(error, self._place)
                tries += 1
                over = time.monotonic() >= ends or (failure.lost and tries >= _RECONNECTS)
                if not failure.again or over or isinstance(error, Unknown):
                    self._prepared = False
                    raise StoreError(str(failure)) from failure.__cause__
            time.sleep(min(0.05 * 2**tries, 1.0))

    def _once(self, work: Callable[[Any], Belief], writes: bool) -> Belief:
        from rfx_agent.budgets.backend import Unknown
        from rfx_agent.budgets.sql.engine import prepare, reading

        if not self._prepared:
            prepare(self._engine, self._place, "beliefs")
            self._prepared = True
        with self._engine.connect() if writes else reading(self._engine) as connection:
            result = work(connection)
            try:
                connection.commit()
            except Exception as error:
                raise Unknown from error
            return result


def _belief(text: str | None) -> Belief:
    return Belief() if text is None else Belief.from_json(text)
