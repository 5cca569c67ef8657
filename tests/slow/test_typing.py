"""The public signatures, as a type checker reads them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")


def test_mypy_accepts_and_refuses_what_it_should() -> None:
    here = Path(__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", str(here / "typing" / "api.py")]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=False)  # ours
    assert done.returncode == 0, done.stdout
