"""The wrapped chain as a Runnable: one run of its own, the attempts as children, sync and async alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, patch_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    get_config_list,
    get_executor_for_config,
    set_config_context,
)
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, coro_with_context
from langchain_core.utils.pydantic import TypeBaseModel

from rfx_agent.adapters.attempts import RETRACT, Again, Made, together
from rfx_agent.adapters.chain.batch import Call, arun_first, run_first
from rfx_agent.adapters.chain.held import streaming_handler
from rfx_agent.adapters.chain.plan import Plan, retracted
from rfx_agent.adapters.chain.thing import Chain, Draw
from rfx_agent.engine.drive import drive, drive_async

__all__ = ["RecoveredRunnable"]

In = TypeVar("In")
Out = TypeVar("Out")


class LikeTheChain(Runnable[In, Out]):
    """A runnable that looks like ``chain`` from outside."""

    def __init__(self, chain: Runnable[In, Any], name: str | None = None) -> None:
        self._chain, self.name = chain, name

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
        """Its own if it was given one, or else the chain's."""
        return self._chain.get_name(suffix, name=name or self.name)

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
        super().__init__(plan.chain, plan.name)
        self._plan = plan

    def __repr__(self) -> str:
        """The call that made it, as far as it tells this one from another."""
        named = f", name={self.name!r}" if self.name else ""
        return f"with_recovery({self._chain!r}, verifier={self._plan.run.verifier.name!r}{named})"

    def __getattr__(self, name: str) -> Any:
        """The chain's; a method that makes another runnable of it (``bind_tools``) makes one with recovery too."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        own = getattr(self._chain, name)
        if not inspect.ismethod(own):
            return own

        @functools.wraps(own)
        def method(*args: Any, **kwargs: Any) -> Any:
            made = own(*args, **kwargs)
            return RecoveredRunnable(replace(self._plan, chain=made)) if isinstance(made, Runnable) else made

        return method

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
        """Do what ``invoke`` does, without blocking the event loop."""
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

    def batch(
        self,
        inputs: list[In],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Out]:
        """Each as ``invoke`` does it, but that the first runs are one batch of the chain's own."""
        if len(inputs) < 2:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        calls: list[Call] = []
        for value, given in zip(inputs, get_config_list(config, len(inputs)), strict=True):
            name, run_id = self._named(given)
            run = get_callback_manager_for_config(given).on_chain_start(None, value, name=name, run_id=run_id)
            calls.append(Call.of(self._plan, value, given, run, kwargs))

        def finish(call: Call) -> Any:
            try:
                with set_config_context(call.config) as context:
                    draw = context.run(self._after, call.ready(), call.made)
            except BaseException as error:
                if call.ends():
                    call.run.on_chain_error(error)
                if return_exceptions and isinstance(error, Exception):
                    return error
                raise
            call.ends()
            call.run.on_chain_end(draw.output)
            return draw.output

        try:
            run_first(calls, whole=not return_exceptions)
            with get_executor_for_config(calls[0].config) as executor:
                return list(executor.map(finish, calls))
        except BaseException as error:
            for call in filter(Call.ends, calls):
                call.run.on_chain_error(error)
            raise

    async def abatch(
        self,
        inputs: list[In],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Out]:
        """Do what ``batch`` does, without blocking the event loop."""
        if len(inputs) < 2:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        calls: list[Call] = []
        for value, given in zip(inputs, get_config_list(config, len(inputs)), strict=True):
            name, run_id = self._named(given)
            manager = get_async_callback_manager_for_config(given)
            run = await manager.on_chain_start(None, value, name=name, run_id=run_id)
            calls.append(Call.of(self._plan, value, given, run, kwargs))

        async def finish(call: Call) -> Any:
            try:
                with set_config_context(call.config) as context:
                    draw = await coro_with_context(self._aafter(call.ready(), call.made), context)
            except BaseException as error:
                if call.ends():
                    await call.run.on_chain_error(error)
                if return_exceptions and isinstance(error, Exception):
                    return error
                raise
            call.ends()
            await call.run.on_chain_end(draw.output)
            return draw.output

        try:
            await arun_first(calls, whole=not return_exceptions)
            return await together([finish(call) for call in calls], calls[0].config.get("max_concurrency"))
        except BaseException as error:
            for call in filter(Call.ends, calls):
                await call.run.on_chain_error(error)
            raise

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
        """Do what ``stream`` does, without blocking the event loop."""
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
        return self._after(thing, thing.tried(Again(1)))

    def _after(self, thing: Chain[In, Out], first: Made) -> Draw[Out]:
        """What comes after the first run, where nothing is streamed."""
        draw = drive(self._plan.finished(thing, first, drive(self._plan.seen(thing, first))))
        draw.release()
        return draw

    async def _ainvoke(
        self, value: In, config: RunnableConfig, run: AsyncCallbackManagerForChainRun, kwargs: Mapping[str, Any]
    ) -> Draw[Out]:
        thing = self._plan.thing(value, config, run, kwargs, streaming=False)
        return await self._aafter(thing, await thing.atried(Again(1)))

    async def _aafter(self, thing: Chain[In, Out], first: Made) -> Draw[Out]:
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
        stands = self._plan.stands(first, seen)
        void = retracted(first) if self._plan.speculative and not stands else None
        if void is not None:
            dispatch_custom_event(RETRACT, asdict(void), config=config)
            if self._plan.on_retract is None:
                yield void
            else:
                self._plan.on_retract(void)
        draw = drive(self._plan.finished(thing, first, seen))
        accepted.append(draw)
        draw.release()
        if not (self._plan.speculative and void is None and draw is first.output):
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
        stands = self._plan.stands(first, seen)
        void = retracted(first) if self._plan.speculative and not stands else None
        if void is not None:
            await adispatch_custom_event(RETRACT, asdict(void), config=config)
            if self._plan.on_retract is None:
                yield void
            else:
                self._plan.on_retract(void)
        draw = await drive_async(self._plan.finished(thing, first, seen))
        accepted.append(draw)
        await draw.arelease()
        if not (self._plan.speculative and void is None and draw is first.output):
            for chunk in draw.shown():
                yield chunk

    def _named(self, config: RunnableConfig) -> tuple[str, Any]:
        return config.get("run_name") or self.name or "with_recovery", config.pop("run_id", None)


_END: Any = object()
