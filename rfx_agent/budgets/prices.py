"""What a model's tokens cost: from the user's own table first, then from the library ``genai-prices``."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from rfx_agent._extras import need
from rfx_agent.budgets.step import Price
from rfx_agent.errors import ConfigError

__all__ = ["Prices", "price_of"]

# The library's names for what a million tokens of text cost: of those read, and of those written.
_TOKENS = (
    (
        *("input_mtok", "input_text_mtok", "input_tool_mtok", "input_text_tool_mtok"),
        *("cache_read_mtok", "cache_write_mtok", "cache_write_5m_mtok", "cache_write_1h_mtok"),
        *("cache_text_read_mtok", "cache_text_write_mtok", "cache_text_write_5m_mtok", "cache_text_write_1h_mtok"),
    ),
    (
        *("output_mtok", "output_reasoning_mtok", "output_citation_mtok"),
        *("output_text_mtok", "output_text_reasoning_mtok", "output_text_citation_mtok"),
    ),
)


def price_of(
    model: str,
    *,
    provider: str | None = None,
    table: Mapping[str, Price | Mapping[str, float]] | None = None,
    longest_prompt: int | None = None,
) -> Price:
    """The price of ``model``, as for ``Recovery(price=price_of("gpt-5-mini"))``.

    A ``Price`` is flat and bounds the cost from above. Where the library's prices differ, it is the dearest that a
    token of text can cost from today on: in a prompt of any length, written to a cache for any time, at any hour of
    the day, and after every change announced. That can be far more than is usually charged: for Anthropic's models it
    is twice the price of a prompt token (written to a cache for an hour), and twice that in a long prompt. Give
    ``longest_prompt`` where you know it, and an entry in ``table`` where the bound is too coarse.

    Left out is what is charged only where it is asked for: a service tier (priority, flex, batch), a region, searches,
    storage, and input or output that is not text. Where you use them, give a price in ``table`` that covers them.

    Args:
        model: the model's name as it is asked for, dated or not; the library's own rules match it.
        provider: who serves it, such as ``"azure"``; one model may cost different amounts at different places. None
            takes the provider that the library infers from the name.
        table: your own prices by exact name, looked up first: a ``Price``, or
            ``{"prompt": 0.25, "completion": 2.0}`` in US dollars per million tokens. A free model has a price of 0.
        longest_prompt: most tokens in one prompt; prices that apply only above are left out. None for no limit.

    Raises:
        ConfigError: no price is known, or none that a price per token bounds; a parameter that cannot work;
            ``genai-prices`` is needed and not installed.

    Nothing is fetched: the prices are those of the installed ``genai-prices``, or those that the program itself has
    set there.

    Example:
        >>> price_of("mine", table={"mine": {"prompt": 0.25, "completion": 2.0}})
        Price(prompt=0.25, completion=2.0)
    """
    for name, value in (("model", model), ("provider", provider)):
        if (value is not None or name == "model") and not (isinstance(value, str) and value.strip()):
            raise ConfigError(f"price: {name} is {value!r}; give its name")
    if longest_prompt is not None and (type(longest_prompt) is not int or longest_prompt < 1):
        raise ConfigError(f"price: longest_prompt is {longest_prompt!r}; give 1 token or more, or None for no limit")
    own = {name: _own(name, entry) for name, entry in (table or {}).items()}
    if model in own:
        return own[model]
    remedy = f"give your own: price_of({model!r}, table={{{model!r}: Price(prompt=..., completion=...)}})"
    library = need("genai_prices", "production")
    try:
        info = library.calc_price(library.Usage(), model, provider_id=provider).model
    except LookupError:
        place = "say who serves it with provider=..., or " if provider is None else ""
        near = ", ".join(_near(model, provider, own)) or "none"
        raise ConfigError(
            f"price: none is known for model {model!r}{f' of {provider!r}' if provider else ''}; the nearest known: "
            f"{near}; {place}{remedy}, in US dollars per million tokens"
        ) from None
    rates = [info.get_prices(moment) for moment in _moments(info.prices, datetime.now(tz=UTC))]
    if any(getattr(rate, "requests_kcount", None) for rate in rates):
        raise ConfigError(
            f"price: model {model!r} costs something per request, which no price per token bounds; {remedy}"
        )
    read, written = ([x for rate in rates for x in _dearest(rate, names, longest_prompt)] for names in _TOKENS)
    if not read or not written:
        # The library says nothing both of what is free and of what is not sold by the token.
        what = "written" if read else "read"
        raise ConfigError(f"price: no price of tokens {what} is known for {model!r}; {remedy}, with 0 where it is free")
    return Price(prompt=max(read), completion=max(written))


class Prices:
    """The prices of the models of a run, each looked up once.

    Args:
        table: as ``price_of`` takes it, or one ``Price`` of every model; None for the library's prices.
        needed: whether money is capped. If not, only models in ``table`` have a price.
    """

    def __init__(
        self, table: Price | Mapping[str, Price | Mapping[str, float]] | None = None, *, needed: bool = False
    ) -> None:
        self._one = table if isinstance(table, Price) else None
        self._table = None if table is None or isinstance(table, Price) else dict(table)
        for name, entry in (self._table or {}).items():
            _own(name, entry)
        self._needed, self._known = needed, dict[tuple[str, str], Price | None]()

    def of(self, model: str, provider: str = "") -> Price | None:
        """The price of ``model``; None where nothing needs one.

        Raises:
            ConfigError: money is capped and no price is known; an unknown price is not a free one.
        """
        if self._one is not None:
            return self._one
        if not self._needed and not self._table:
            return None
        key = (model, provider)
        if key not in self._known:
            self._known[key] = self._found(model, provider)
        return self._known[key]

    def _found(self, model: str, provider: str) -> Price | None:
        if self._table and model in self._table:
            return _own(model, self._table[model])
        if not self._needed:
            return None
        try:
            return price_of(model or "unknown", provider=provider or None)
        except ConfigError as error:
            with contextlib.suppress(ConfigError):  # the library may call the provider something else
                return price_of(model or "unknown")
            raise ConfigError(
                f"the budget caps usd, and an unknown price is not a free one; {error}; for a run's budget give "
                f"prices={{{model!r}: Price(prompt=..., completion=...)}}"
            ) from None


def _own(name: str, entry: Price | Mapping[str, float]) -> Price:
    if isinstance(entry, Price):
        return entry
    if not isinstance(entry, Mapping) or set(entry) != {"prompt", "completion"}:
        raise ConfigError(
            f"price: table[{name!r}] is {entry!r}; give a Price, or a mapping with 'prompt' and 'completion' in US "
            "dollars per million tokens"
        )
    try:
        return Price(prompt=entry["prompt"], completion=entry["completion"])
    except ConfigError as error:
        raise ConfigError(f"price: table[{name!r}]: {error}") from None


def _moments(prices: Any, now: datetime) -> list[datetime]:
    """Moments from today on, one at least for every combination of prices that can come to apply.

    A price begins on a day or holds at hours of the day, and one later in the list takes the place of one before it.
    """
    limits = [x.constraint for x in prices if x.constraint is not None] if isinstance(prices, list) else []
    starts = {x.start_date for x in limits if hasattr(x, "start_date")}
    days = {now.date()} | {day for day in starts if day > now.date()}
    # An interval ends before its end, so that each of these is also a moment of the time that follows it.
    ends = {getattr(x, name) for x in limits for name in ("start_time", "end_time") if hasattr(x, name)}
    times = {time(tzinfo=UTC)} | {_utc(at) for at in ends}
    return [datetime.combine(day, at) for day in days for at in times]


def _utc(at: time) -> time:
    """A time of day in UTC, which it is where it names no zone."""
    return datetime.combine(date(2000, 1, 2), at.replace(tzinfo=at.tzinfo or UTC)).astimezone(UTC).timetz()


def _dearest(rate: Any, names: Iterable[str], longest: int | None) -> Iterator[float]:
    """Per name that ``rate`` has a price for, the dearest that applies up to ``longest`` tokens."""
    for name in names:
        price = getattr(rate, name, None)
        if price is not None:
            tiers = [x.price for x in getattr(price, "tiers", ()) if longest is None or x.start < longest]
            yield float(max([getattr(price, "base", price), *tiers]))


def _near(model: str, provider: str | None, own: Iterable[str]) -> list[str]:
    """Known names like ``model``, each with who has it; names like ``provider`` where that is not known."""
    known = need("genai_prices.data_snapshot", "production").get_snapshot().providers
    if provider is not None:
        asked = provider.strip().lower()
        here = [x for x in known if x.id == asked or (x.provider_match and x.provider_match.is_match(asked))]
        if not here:
            return [f"provider {x!r}" for x in difflib.get_close_matches(asked, [x.id for x in known])]
        known = here
    places: dict[str, list[str]] = {name: ["your table"] for name in own}
    for one in known:
        for info in one.models:
            if info.is_match(info.id):
                places.setdefault(info.id, []).append(one.id)
    return [f"{name!r} ({', '.join(places[name][:3])})" for name in difflib.get_close_matches(model, list(places))]
