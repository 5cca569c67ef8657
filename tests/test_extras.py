"""Libraries of the extras: named when they are missing, and patient where they bring OpenMP."""

import os
from typing import Any

import pytest

from rfx_agent import ConfigError, _extras
from rfx_agent._extras import need, need_patient


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"no_such_library is not installed; pip install 'rfx-agent\[lab\]'"):
        need("no_such_library.inner", "lab")


def test_the_wait_policy_is_set_for_the_import_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)

    def load(name: str) -> Any:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        raise ImportError(name)

    monkeypatch.setattr(_extras.importlib, "import_module", load)
    for _ in range(2):
        with pytest.raises(ConfigError):
            need_patient("no_such_library", "local")
        assert "OMP_WAIT_POLICY" not in os.environ
    need_patient_of_a_loaded_module_leaves_it_alone(seen)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with pytest.raises(ConfigError):
        need_patient("no_such_library", "local")
    assert seen == ["PASSIVE", "PASSIVE", None, "ACTIVE"]


def need_patient_of_a_loaded_module_leaves_it_alone(seen: list[str | None]) -> None:
    with pytest.raises(ConfigError):
        need_patient("os", "local")
    assert seen[-1] is None
