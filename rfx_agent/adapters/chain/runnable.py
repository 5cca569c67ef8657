"""The wrapped chain as a Runnable: one run of its own, the attempts as children, sync and async alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, patch_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    set_config_context,
)
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, coro_with_context
from langchain_core.utils.pydantic import TypeBaseModel

from rfx_agent.adapters.attempts import RETRACT, Again, Made
from rfx_agent.adapters.chain.held import streaming_handler
from rfx_agent.adapters.chain.plan import Plan, retracted
from rfx_agent.adapters.chain.thing import Draw
from rfx_agent.engine.drive import drive, drive_async

__all__ = ["RecoveredRunnable"]

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


class RecoveredRunnable(LikeTheChain[In, Out]):
    """What ``with_recovery`` returns."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.chain)
        self._plan = plan

    def invoke(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> Out:  # noqa: A002  # LangChain's name
        """The chain's output for ``input``, recovered where it failed.

        Raises:
            Unresolved: when there is no answer that the verifier or a person vouches for.
            VerifierError: the verifier broke.
        """
        config = ensure_config(config)
        name, run_id = self._named(config)
        run = get_callback_manager_for_config(config).on_chain_start(None, input, name=name, run_id=run_id)
        try:
            inner = patch_config(config, callbacks=run.get_child())
            with set_config_context(inner) as context:
                draw = context.run(self._invoke, input, inner, run, kwargs)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(draw.output)
        return draw.output

    async def ainvoke(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> Out:  # noqa: A002  # LangChain's name
        """The same on the running event loop."""
        config = ensure_config(config)
        name, run_id = self._named(config)
        run = await get_async_callback_manager_for_config(config).on_chain_start(None, input, name=name, run_id=run_id)
        try:
            inner = patch_config(config, callbacks=run.get_child())
            with set_config_context(inner) as context:
                draw = await coro_with_context(self._ainvoke(input, inner, run, kwargs), context)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(draw.output)
        return draw.output

    def stream(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Out]:  # noqa: A002  # LangChain's name
        """The accepted attempt's chunks; speculative, the first attempt's as they come (see ``with_recovery``).

        Raises:
            Unresolved, VerifierError: as ``invoke``.
        """
        config = ensure_config(config)
        name, run_id = self._named(config)
        run = get_callback_manager_for_config(config).on_chain_start(None, input, name=name, run_id=run_id)
        accepted: list[Draw[Out]] = []
        try:
            inner = patch_config(config, callbacks=run.get_child())
            with set_config_context(inner) as context:
                chunks = context.run(self._stream, input, inner, run, kwargs, accepted)
                if (tap := streaming_handler(run.handlers)) is not None:
                    chunks = tap.tap_output_iter(run.run_id, chunks)
                while (chunk := context.run(next, chunks, _END)) is not _END:
                    yield chunk
        except GeneratorExit:  # the reader has had enough
            run.on_chain_end(accepted[0].output if accepted else None)
            raise
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(accepted[0].output)

    async def astream(self, input: In, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Out]:  # noqa: A002  # LangChain's name
        """The same on the running event loop."""
        config = ensure_config(config)
        name, run_id = self._named(config)
        run = await get_async_callback_manager_for_config(config).on_chain_start(None, input, name=name, run_id=run_id)
        accepted: list[Draw[Out]] = []
        source: Any = None
        try:
            inner = patch_config(config, callbacks=run.get_child())
            with set_config_context(inner) as context:
                chunks = source = context.run(self._astream, input, inner, run, kwargs, accepted)
                if (tap := streaming_handler(run.handlers)) is not None:
                    chunks = tap.tap_output_aiter(run.run_id, chunks)
                while (chunk := await coro_with_context(anext(chunks, _END), context)) is not _END:
                    yield chunk
        except GeneratorExit:  # the reader has had enough
            await run.on_chain_end(accepted[0].output if accepted else None)
            raise
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        finally:
            if source is not None:
                await source.aclose()
        await run.on_chain_end(accepted[0].output)

    def _invoke(
        self, value: In, config: RunnableConfig, run: CallbackManagerForChainRun, kwargs: Mapping[str, Any]
    ) -> Draw[Out]:
        thing = self._plan.thing(value, config, run, kwargs, streaming=False)
        first = thing.tried(Again(1))
        draw = drive(self._plan.finished(thing, first, drive(self._plan.seen(thing, first))))
        draw.release()
        return draw

    async def _ainvoke(
        self, value: In, config: RunnableConfig, run: AsyncCallbackManagerForChainRun, kwargs: Mapping[str, Any]
    ) -> Draw[Out]:
        thing = self._plan.thing(value, config, run, kwargs, streaming=False)
        first = await thing.atried(Again(1))
        seen = await drive_async(self._plan.seen(thing, first))
        draw = await drive_async(self._plan.finished(thing, first, seen))
        await draw.arelease()
        return draw

    def _stream(
        self,
        value: In,
        config: RunnableConfig,
        run: CallbackManagerForChainRun,
        kwargs: Mapping[str, Any],
        accepted: list[Draw[Out]],
    ) -> Iterator[Any]:
        thing = self._plan.thing(value, config, run, kwargs, streaming=True)
        if self._plan.speculative:
            opened: list[Made] = []
            yield from thing.speculate(Again(1), opened)
            first = opened[0]
        else:
            first = thing.tried(Again(1))
        seen = drive(self._plan.seen(thing, first))
        passed = seen is not None and seen.passed
        if self._plan.speculative and not passed and (void := retracted(first)) is not None:
            dispatch_custom_event(RETRACT, asdict(void), config=config)
            if self._plan.on_retract is None:
                yield void
            else:
                self._plan.on_retract(void)
        draw = drive(self._plan.finished(thing, first, seen))
        accepted.append(draw)
        draw.release()
        if not (self._plan.speculative and draw is first.output):
            yield from draw.shown()

    async def _astream(
        self,
        value: In,
        config: RunnableConfig,
        run: AsyncCallbackManagerForChainRun,
        kwargs: Mapping[str, Any],
        accepted: list[Draw[Out]],
    ) -> AsyncIterator[Any]:
        thing = self._plan.thing(value, config, run, kwargs, streaming=True)
        if self._plan.speculative:
            opened: list[Made] = []
            async for chunk in thing.aspeculate(Again(1), opened):
                yield chunk
            first = opened[0]
        else:
            first = await thing.atried(Again(1))
        seen = await drive_async(self._plan.seen(thing, first))
        passed = seen is not None and seen.passed
        if self._plan.speculative and not passed and (void := retracted(first)) is not None:
            await adispatch_custom_event(RETRACT, asdict(void), config=config)
            if self._plan.on_retract is None:
                yield void
            else:
                self._plan.on_retract(void)
        draw = await drive_async(self._plan.finished(thing, first, seen))
        accepted.append(draw)
        await draw.arelease()
        if not (self._plan.speculative and draw is first.output):
            for chunk in draw.shown():
                yield chunk

    def _named(self, config: RunnableConfig) -> tuple[str, Any]:
        return config.get("run_name") or self._plan.run_name, config.pop("run_id", None)


_END: Any = object()
