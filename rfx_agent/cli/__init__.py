"""The command line. ``main`` is all that is imported before typer is known to be there."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``rfx``."""
    try:
        from rfx_agent.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"rfx: the command line needs {error.name}; install it with: pip install 'rfx-agent[demo]'")
    app()
