"""The tables of docs/overspend.md are those of the committed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_row_of_the_page_is_in_the_data() -> None:
    data = "benchmarks/data/overspend.json"
    command = [sys.executable, "-m", "benchmarks.overspend.report", data]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    page = [x for x in (ROOT / "docs" / "overspend.md").read_text().splitlines() if x.startswith("|")]
    assert len(page) > 70
    assert [x for x in page if x not in made] == []
