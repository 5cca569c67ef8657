"""Prices: the user's table, and bounds on what the library's own arithmetic says of real models."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rfx_agent.budgets import prices
from rfx_agent.budgets.prices import price_of
from rfx_agent.budgets.step import Price
from rfx_agent.errors import ConfigError
from rfx_agent.records import Usage

library: Any = pytest.importorskip("genai_prices")
types: Any = pytest.importorskip("genai_prices.types")

NOW = datetime.now(tz=UTC)


def _known() -> list[tuple[str, str]]:
    """Every (provider, model) of the snapshot that a price per token bounds."""
    from genai_prices.data_snapshot import get_snapshot

    found = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            if model.is_match(model.id):
                try:
                    price_of(model.id, provider=provider.id)
                except ConfigError:
                    continue
                found.append((provider.id, model.id))
    return sorted(set(found))


KNOWN = _known()


def _cost(provider: str | None, model: str, usage: dict[str, int], when: datetime = NOW) -> Decimal:
    total: Decimal = library.calc_price(
        library.Usage(**usage), model, provider_id=provider, genai_request_timestamp=when
    ).total_price
    return total


def _ours(price: Price, usage: dict[str, int]) -> Decimal:
    return Decimal(price.usd(Usage(usage["input_tokens"], usage["output_tokens"])))


def test_most_of_the_library_is_known() -> None:
    assert len(KNOWN) > 1000
    assert ("openai", "gpt-5-mini") in KNOWN


@st.composite
def breakdowns(draw: st.DrawFn) -> dict[str, int]:
    """Tokens read and written, and of what kind they were."""
    prompt, completion = draw(st.integers(0, 2_000_000)), draw(st.integers(0, 200_000))
    cached = draw(st.integers(0, prompt))
    written = draw(st.integers(0, prompt - cached))
    return {
        "input_tokens": prompt,
        "cache_read_tokens": cached,
        "cache_write_tokens": written,
        "cache_write_1h_tokens": draw(st.integers(0, written)),
        "output_tokens": completion,
        "output_reasoning_tokens": draw(st.integers(0, completion)),
    }


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.sampled_from(KNOWN), breakdowns(), st.timedeltas(timedelta(0), timedelta(days=3650)))
@example(
    ("anthropic", "claude-sonnet-4-5"),
    {"input_tokens": 900_000, "cache_write_tokens": 900_000, "cache_write_1h_tokens": 900_000, "output_tokens": 9},
    timedelta(0),
)
@example(("google", "gemini-2.5-pro"), {"input_tokens": 200_001, "output_tokens": 9000}, timedelta(0))
def test_a_price_bounds_the_cost_of_any_usage(which: tuple[str, str], usage: dict[str, int], later: timedelta) -> None:
    provider, model = which
    ours = _ours(price_of(model, provider=provider), usage)
    assert ours * (1 + Decimal("1e-12")) >= _cost(provider, model, usage, NOW + later)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(1, 1_000_000), st.integers(0, 200_000))
def test_a_price_for_prompts_up_to_a_length_bounds_those(which: tuple[str, str], prompt: int, completion: int) -> None:
    provider, model = which
    usage = {"input_tokens": prompt, "output_tokens": completion}
    ours = _ours(price_of(model, provider=provider, longest_prompt=prompt), usage)
    assert ours * (1 + Decimal("1e-12")) >= _cost(provider, model, usage)
    assert ours <= _ours(price_of(model, provider=provider), usage)


FLAT = ("gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "o3", "mistral-small-latest")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.sampled_from(FLAT), st.integers(0, 2_000_000), st.integers(0, 200_000))
def test_a_flat_price_is_the_cost(model: str, prompt: int, completion: int) -> None:
    usage = {"input_tokens": prompt, "output_tokens": completion}
    assert float(_ours(price_of(model), usage)) == pytest.approx(float(_cost(None, model, usage)), rel=1e-12)


def test_every_kind_of_text_token_has_a_name_here() -> None:
    """The library's units: a kind of token that is added there must be added here."""
    from genai_prices.data_units import unit_data

    for direction, names in zip(("input", "output"), prices._TOKENS, strict=True):
        units = {
            unit["price_key"]
            for unit in unit_data.values()
            if unit["dimensions"].get("direction") == direction
            and unit["dimensions"].get("family") == "tokens"
            and unit["dimensions"].get("modality", "text") == "text"
        }
        assert units == set(names)
        assert {unit["per"] for unit in unit_data.values() if unit["price_key"] in names} == {1_000_000}


# --- prices that change


def _model(monkeypatch: pytest.MonkeyPatch, model_prices: Any) -> Any:
    from genai_prices import data_snapshot

    model = types.ModelInfo(id="made-up", match=types.ClauseEquals("made-up"), prices=model_prices)
    matching = types.ClauseEquals("made-up")
    provider = types.Provider(id="maker", name="Maker", api_pattern="x", model_match=matching, models=[model])
    snapshot = data_snapshot.DataSnapshot(providers=[provider], from_auto_update=False)
    monkeypatch.setattr(data_snapshot, "_custom_snapshot", snapshot)
    return model


def _rate(read: str, written: str = "1") -> Any:
    return types.ModelPrice(input_mtok=Decimal(read), output_mtok=Decimal(written))


def _on(day: date, read: str) -> Any:
    return types.ConditionalPrice(constraint=types.StartDateConstraint(day), prices=_rate(read))


def test_a_change_announced_counts_and_a_past_price_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    past, coming = (NOW + timedelta(days=days) for days in (-30, 30))
    old = types.ConditionalPrice(prices=_rate("9"))
    _model(monkeypatch, [old, _on(past.date(), "2"), _on(coming.date(), "3")])
    assert price_of("made-up") == Price(prompt=3, completion=1)
    _model(monkeypatch, [old, _on(past.date(), "2"), _on(coming.date(), "1")])
    assert price_of("made-up") == Price(prompt=2, completion=1)


@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-5))])
@pytest.mark.parametrize("hours", [(16, 20), (22, 3), (0, 8)])
def test_the_dearest_hour_counts(monkeypatch: pytest.MonkeyPatch, zone: Any, hours: tuple[int, int]) -> None:
    start, end = (time(hour, 30, tzinfo=zone) for hour in hours)
    inside = types.TimeOfDateConstraint(start_time=start, end_time=end)
    for at_night, by_day in (("1", "4"), ("4", "1")):
        _model(
            monkeypatch,
            [
                types.ConditionalPrice(prices=_rate("50")),
                _on(NOW.date() + timedelta(days=9), by_day),
                types.ConditionalPrice(constraint=inside, prices=_rate(at_night)),
                _on(NOW.date() + timedelta(days=9), "2"),
            ],
        )
        assert price_of("made-up").prompt == 50  # until then
        _model(
            monkeypatch,
            [
                types.ConditionalPrice(prices=_rate(by_day)),
                types.ConditionalPrice(constraint=inside, prices=_rate(at_night)),
            ],
        )
        assert price_of("made-up").prompt == 4


# --- the user's table


@pytest.mark.parametrize("entry", [Price(prompt=0.5, completion=2), {"prompt": 0.5, "completion": 2}])
def test_the_users_table_comes_first(entry: Any) -> None:
    own = {"gpt-5-mini": entry, "mine": Price(prompt=0, completion=0)}
    assert price_of("gpt-5-mini", table=own) == Price(prompt=0.5, completion=2)
    assert price_of("mine", table=own).usd(Usage(1000, 1000)) == 0
    assert price_of("gpt-5", table=own) == price_of("gpt-5")


def test_a_model_in_the_table_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert price_of("mine", table={"mine": {"prompt": 1, "completion": 2}}).completion == 2
    with pytest.raises(ConfigError, match=r"rfx-agent\[production\]"):
        price_of("gpt-5")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"prompt": 1}, "'prompt' and 'completion'"),
        ({"prompt": 1, "completion": 2, "cached": 1}, "'prompt' and 'completion'"),
        ({"prompt": -1, "completion": 2}, "prompt is -1"),
        ({"prompt": 1, "completion": float("nan")}, "completion is nan"),
        ({"prompt": "1", "completion": 2}, "prompt is '1'"),
        (3.0, "give a Price"),
    ],
)
def test_an_entry_that_is_no_price_fails_whatever_is_asked(entry: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        price_of("gpt-5", table={"mine": entry})
    assert "table['mine']" in str(caught.value)


# --- what is not known


def test_an_unknown_model_names_the_nearest_and_the_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        price_of("gpt-5-minni", table={"gpt-5-minnie": {"prompt": 1, "completion": 1}})
    for said in ("'gpt-5-minni'", "'gpt-5-minnie' (your table)", "'gpt-5-mini' (", "provider=", "table={"):
        assert said in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_model_that_only_its_provider_tells_is_named_with_it() -> None:
    with pytest.raises(ConfigError, match=r"'llama-3.1-8b-instant' \(groq\)"):
        price_of("llama-3.1-8b-instant")
    assert price_of("llama-3.1-8b-instant", provider="groq").prompt > 0


def test_an_unknown_provider_names_those_like_it() -> None:
    with pytest.raises(ConfigError, match=r"'gpt-4o' of 'azur'; the nearest known: provider 'azure'"):
        price_of("gpt-4o", provider="azur")
    with pytest.raises(ConfigError, match=r"\(google\)"):
        price_of("gemina-2.5", provider="Gemini")  # a name that the library has for google


def test_what_a_price_per_token_cannot_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _model(monkeypatch, types.ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), requests_kcount=Decimal(5)))
    with pytest.raises(ConfigError, match="per request"):
        price_of("made-up")
    _model(monkeypatch, types.ModelPrice(input_mtok=Decimal(1)))
    with pytest.raises(ConfigError, match=r"tokens written .* table=.* 0 where it is free"):
        price_of("made-up")
    _model(monkeypatch, types.ModelPrice())
    with pytest.raises(ConfigError, match="tokens read"):
        price_of("made-up")
    _model(monkeypatch, _rate("0", "0"))
    assert price_of("made-up") == Price(prompt=0, completion=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": ""}, "model is ''"),
        ({"model": None}, "model is None"),
        ({"provider": ""}, "provider is ''"),
        ({"provider": 3}, "provider is 3"),
        ({"longest_prompt": 0}, "longest_prompt is 0"),
        ({"longest_prompt": True}, "longest_prompt is True"),
    ],
)
def test_parameters_that_cannot_work_fail_at_once(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        price_of(**({"model": "gpt-5"} | given))


def test_nothing_is_loaded_before_a_price_is_asked_and_no_thread_started() -> None:
    code = (
        "import sys, threading; from rfx_agent.budgets.prices import price_of; print('genai_prices' in sys.modules); "
        "price_of('gpt-5-mini'); print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"], done.stderr
