"""What a wrapper shows of the chain that it wraps: schemas, types, name, graph and configurable fields."""

from __future__ import annotations

from typing import Any, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec
from langchain_core.utils.pydantic import TypeBaseModel

__all__ = ["LikeTheChain"]

In = TypeVar("In")
Out = TypeVar("Out")


class LikeTheChain(Runnable[In, Out]):
    """A runnable that looks like ``chain`` from outside."""

    def __init__(self, chain: Runnable[In, Any]) -> None:
        self._chain = chain

    @property
    def InputType(self) -> type[In]:  # noqa: N802  # LangChain's name
        """The chain's."""
        return self._chain.InputType

    @property
    def OutputType(self) -> type[Out]:  # noqa: N802  # LangChain's name
        """The chain's."""
        return self._chain.OutputType

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The chain's."""
        return self._chain.config_specs

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """The chain's."""
        return self._chain.get_name(suffix, name=name)

    def get_input_schema(self, config: RunnableConfig | None = None) -> TypeBaseModel:
        """The chain's."""
        return self._chain.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> TypeBaseModel:
        """The chain's."""
        return self._chain.get_output_schema(config)

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The chain's."""
        return self._chain.get_graph(config)
