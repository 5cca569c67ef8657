"""What holds connections, workers or files until it is closed, as a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["AsyncClosing", "Closing"]


class Closing:
    """``with`` for a class with ``close()``."""

    def close(self) -> None:
        """Let go of what is held; idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClosing(Closing):
    """The same, and ``async with`` for its ``aclose()``, which is ``close()`` unless a class says otherwise."""

    async def aclose(self) -> None:
        """The same as ``close``."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
