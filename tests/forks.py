"""A check in a forked child, which must end in time."""

import os
import signal
import threading
from collections.abc import Callable


def holds_in_a_child(check: Callable[[], bool], *, seconds: float) -> bool:
    """Whether ``check`` gives True in a forked child within ``seconds``; one that raises or hangs does not."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    return os.waitstatus_to_exitcode(status) == 0
