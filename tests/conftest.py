"""The tiers: ``tests/slow/`` needs a model, torch, a database, a server or a browser; everything else is quick.

- ``pytest -m "not slow"``: the quick tier. It collects nothing else, so it also runs with the extra ``test`` alone.
- ``pytest``: both, which is the gate.
- ``pytest -m nightly``: what is worth its time once a day.
"""

from pathlib import Path

import pytest

SLOW = Path(__file__).parent / "slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what needs a heavy library."""
    return True if collection_path == SLOW and config.option.markexpr == "not slow" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies under ``slow/``, before pytest chooses by marks."""
    for item in items:
        if SLOW in item.path.parents:
            item.add_marker(pytest.mark.slow)
