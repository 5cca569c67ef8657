"""What a verifier that gives no proof was measured to be worth: a small file that verifiers load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rfx_agent.errors import ConfigError
from rfx_agent.evidence.opinions import Rates, checked_rates

__all__ = ["MeasuredRates", "MeasuredShare", "RatesLike", "loaded_rates"]

RatesLike: TypeAlias = Rates | str | os.PathLike[str]
"""(true passes, false passes), or the path of the file that ``rfx judge-check --rates`` wrote."""

_LARGEST = 100_000  # bytes; a file of ours has some hundred


class MeasuredShare(BaseModel):
    """A share as it was counted.

    Attributes:
        passed: answers that passed, of ``n``.
        n: answers.
        low, high: 95 % interval of the share.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    passed: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=1)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _no_more_than_all(self) -> MeasuredShare:
        if self.passed > self.n:
            raise ValueError("more passed than there were")
        return self

    @property
    def value(self) -> float:
        """The share that is reckoned with: (passed + 1/2) / (n + 1), so that none of 40 is rare and not impossible."""
        return (self.passed + 0.5) / (self.n + 1)


class MeasuredRates(BaseModel):
    """How many right and how many wrong answers a verifier passes, as measured.

    Attributes:
        judge: the verifier's name; for people who read the file.
        model: the judging model, or None where there is none or it is not known.
        settings: what the rates depend on, as ``JudgeVerifier.settings``; empty where it is not known.
        true_pass, false_pass: the shares of right and of wrong answers that it passed.
        date: of the measurement, as 2026-01-31.
        version: of this format.

    Example:
        >>> some = {"passed": 36, "n": 40, "low": 0.77, "high": 0.96}
        >>> none = {"passed": 0, "n": 40, "low": 0.0, "high": 0.09}
        >>> rates = MeasuredRates(judge="j", true_pass=some, false_pass=none, date="2026-01-31")
        >>> [round(x, 3) for x in rates.pair]
        [0.89, 0.012]
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    judge: str = ""
    model: str | None = None
    settings: dict[str, bool | int | float | str] = {}
    true_pass: MeasuredShare
    false_pass: MeasuredShare
    date: str

    @property
    def pair(self) -> Rates:
        """(true passes, false passes), as verifiers reckon with them."""
        return self.true_pass.value, self.false_pass.value

    @property
    def tells(self) -> bool:
        """Whether a pass says anything: right answers pass more often than wrong ones."""
        true, false = self.pair
        return true > false

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"rates: {path} cannot be written: {error}; give another path") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, where: str = "rates") -> MeasuredRates:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or is no such file; names what is wrong with it.
        """
        try:
            with Path(path).open("rb") as file:
                return cls.model_validate_json(file.read(_LARGEST))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"{where}: {path} holds no rates: {place}: {first['msg']}; {_MEASURE}") from error
        except (OSError, ValueError) as error:  # a path that the system cannot even spell
            told = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{where}: {path!r} cannot be read: {told}; {_MEASURE}") from error


_MEASURE = "measure the judge with rfx judge-check CASES --rates FILE"


def loaded_rates(
    where: str, rates: object, *, settings: Mapping[str, Any] | None = None, model: str | None = None
) -> Rates | None:
    """``rates`` as a pair: as they are, or from a file; None stays None.

    Args:
        where: the object and parameter, for messages.
        rates: a pair of shares, a path, or None.
        settings: of the verifier that will use them; each that the file has must be the same.
        model: of that verifier, where known; the file's, where known, must be the same.

    Raises:
        ConfigError: a file that cannot be read, that was measured for another judge, or whose rates tell nothing; a
            pair that is none.
    """
    if not isinstance(rates, (str, os.PathLike)):
        return checked_rates(where, rates)
    found = MeasuredRates.load(rates, where=f"{where}: rates")
    mine = dict(settings or {}) | ({} if model is None else {"model": model})
    theirs = found.settings | ({} if found.model is None else {"model": found.model})
    other = [
        f"{key} {theirs[key]!r}, and here it is {mine[key]!r}"
        for key in mine
        if theirs.get(key, mine[key]) != mine[key]
    ]
    if other:
        raise ConfigError(
            f"{where}: rates were measured with {'; '.join(other)} ({rates}); measure this judge as it is used, with "
            "rfx judge-check CASES --rates FILE, or leave rates out"
        )
    if not found.tells:
        true, false = found.true_pass, found.false_pass
        raise ConfigError(
            f"{where}: the judge of {rates} passed {true.passed} of {true.n} right and {false.passed} of {false.n} "
            "wrong answers, so that its pass tells nothing; take another model or rubric and measure it, or leave "
            "rates out: what it passes after a failure is then unconfirmed"
        )
    return found.pair
