"""What people have where a chat model is wanted: the model, wrapped in any of LangChain's ways, or its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, merge_configs
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.retry import RunnableRetry
from pydantic import SecretStr

from rfx_agent._extras import need
from rfx_agent.errors import ConfigError
from rfx_agent.samplers.openai.secrets import of_client, redact, spellings

__all__ = ["model_of", "models_in", "most_calls", "name_of", "secrets_in", "with_models"]

_SDK_RETRIES = 2  # of OpenAI's and Anthropic's SDK, where a model leaves them alone
_ME = "ChatModelSampler"


def model_of(value: Any) -> Runnable[Any, Any]:
    """``value`` as a chat model: itself, or the one that ``init_chat_model`` makes of a name.

    Raises:
        ConfigError: it is no chat model, or the model that it names cannot be made.
    """
    if isinstance(value, str):
        return _named(value)
    if isinstance(value, Runnable) and all(map(_is_model, models_in(value))):
        return value
    if isinstance(value, Runnable):
        raise ConfigError(
            f"{_ME}: model is a {type(value).__name__}, and no chat model; give the chat model alone, or wrap a whole "
            "chain: with_recovery(chain, verifier=...)"
        )
    kind = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
    raise ConfigError(
        f"{_ME}: model is {kind}; give a LangChain chat model, such as ChatOpenAI(...), or its name as "
        'init_chat_model takes it, such as "openai:gpt-4o-mini"'
    )


def _named(name: str) -> Runnable[Any, Any]:
    said = repr(redact(name))
    init = need("langchain.chat_models", "langchain").init_chat_model
    try:
        return init(name)  # type: ignore[no-any-return]  # a chat model
    except ImportError as error:
        raise ConfigError(f"{_ME}: model is {said}: {error}") from error
    except Exception as error:
        why = redact(str(error)).strip().partition("\n")[0][:300]
        raise ConfigError(
            f'{_ME}: model is {said}, of which init_chat_model makes none; give "provider:model" and set the '
            f"provider's key, or give the chat model itself ({type(error).__name__}: {why})"
        ) from error


def _is_model(value: Any) -> bool:
    return isinstance(value, BaseChatModel) or _is_configurable(value)


def _is_configurable(value: Any) -> bool:
    """Whether ``value`` is what ``init_chat_model(configurable_fields=...)`` makes: a model as soon as it is called."""
    return type(value).__name__ == "_ConfigurableModel" and callable(getattr(type(value), "_model", None))


def _inside(runnable: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    """What a wrapper wraps, first what is asked first; nothing for anything else."""
    if isinstance(runnable, RunnableBindingBase):
        return [runnable.bound]
    if isinstance(runnable, RunnableWithFallbacks):
        return [runnable.runnable, *runnable.fallbacks]
    if isinstance(runnable, DynamicRunnable):
        others = getattr(runnable, "alternatives", {}).values()
        return [runnable.default, *(x for x in others if isinstance(x, Runnable))]
    return []


def models_in(runnable: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """What stands inside all wrappers, first what is asked first."""
    inside = _inside(runnable)
    if not inside:
        yield runnable
    for one in inside:
        yield from models_in(one)


def with_models(
    runnable: Runnable[Any, Any],
    change: Callable[[Runnable[Any, Any]], Runnable[Any, Any]],
    config: RunnableConfig | None = None,
) -> Runnable[Any, Any]:
    """``runnable`` as ``config`` configures it, with what ``change`` makes of each model inside its wrappers.

    Raises:
        ConfigError: the config names no model, and there is no default.
    """
    if isinstance(runnable, RunnableBindingBase):
        bound = with_models(runnable.bound, change, merge_configs(config, runnable.config))
        return runnable.model_copy(update={"bound": bound})
    if isinstance(runnable, RunnableWithFallbacks):
        first, *others = (with_models(one, change, config) for one in _inside(runnable))
        return runnable.model_copy(update={"runnable": first, "fallbacks": others})
    if isinstance(runnable, DynamicRunnable):
        return with_models(runnable.prepare(ensure_config(config))[0], change, config)
    if _is_configurable(runnable):
        try:
            model = runnable._model(config)  # type: ignore[attr-defined]  # what its own invoke does
        except TypeError as error:
            raise ConfigError(
                f"{_ME}: the model is configurable and no config says which; call with "
                'config={"configurable": {"model": "openai:gpt-4o-mini"}}, or give it a default'
            ) from error
        return with_models(model, change, config)
    return change(runnable)


def name_of(model: Runnable[Any, Any]) -> str:
    """What a model is called, for records and messages."""
    if _is_configurable(model):
        return str(vars(model).get("_default_config", {}).get("model") or "configurable model")
    names = (getattr(model, name, None) for name in ("model_name", "model", "model_id"))
    return next((name for name in names if isinstance(name, str) and name), type(model).__name__)


def secrets_in(runnable: Runnable[Any, Any]) -> tuple[str, ...]:
    """The keys that the models inside hold; a provider may quote them back."""
    keys: list[Any] = []
    for model in models_in(runnable):
        fields = vars(model)
        keys += [value.get_secret_value() for value in fields.values() if isinstance(value, SecretStr)]
        keys += of_client(fields.get("root_client") or fields.get("root_async_client"))
    return tuple(one for key in dict.fromkeys(keys) if isinstance(key, str) for one in spellings(key, least=4))


def most_calls(runnable: Runnable[Any, Any]) -> int:
    """The most requests that one call can cause: those of a retry, of every fallback, and of a client's own retries."""
    inside = [most_calls(one) for one in _inside(runnable)]
    if isinstance(runnable, RunnableWithFallbacks):
        return sum(inside)
    if isinstance(runnable, RunnableRetry):
        return inside[0] * max(runnable.max_attempt_number, 1)
    if inside:
        return max(inside)
    retries = getattr(runnable, "max_retries", 0) if isinstance(runnable, BaseChatModel) else 0
    retries = _SDK_RETRIES if retries is None else retries
    return 1 + max(retries, 0) if isinstance(retries, int) else 1
