"""Runs of a wrapped chain as draws: each attempt is a child run with its own tag, output and chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, patch_config
from langchain_core.runnables.config import get_executor_for_config
from langchain_core.runnables.utils import gather_with_concurrency

from rfx_agent._errors import RfxError, SamplerError, is_control_flow
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.adapters._chain.draw import Draw, Reported, total
from rfx_agent.adapters._chain.held import Held, hold
from rfx_agent.ports import Sampler

__all__ = ["ChainDraws"]

In = TypeVar("In")
Out = TypeVar("Out")


class ChainDraws(Generic[In, Out]):
    """The sampler of one call: draws by running the chain again on the call's own input.

    Prompts other than the step's own (a tool's) go to ``model``. Tokens are counted where the chain's models report
    them. The first run is the caller's own call: its outcome is the candidate, and no budget is asked for it.

    Args:
        chain, value, kwargs: what is run, on what.
        config: of the runs; its callbacks are replaced by children of ``run``.
        run: the run that the attempts are children of.
        step: the step that the chain's runs answer.
        model: what drives the tool, or None.
        text: what a verifier reads of an output.
        failures: exceptions of the chain that are failed answers.
        streaming: whether runs are streamed and their chunks kept.
    """

    continues_prefix = False
    takes_temperature = False

    def __init__(
        self,
        chain: Runnable[In, Out],
        value: In,
        kwargs: Mapping[str, Any],
        *,
        config: RunnableConfig,
        run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        step: Step,
        model: Sampler | None,
        text: Callable[[Out], str],
        failures: tuple[type[Exception], ...],
        streaming: bool,
    ) -> None:
        self.name = chain.get_name()
        self.step, self.config, self.streaming = step, config, streaming
        self._chain, self._value, self._kwargs, self._run = chain, value, kwargs, run
        self._model, self._text, self._failures = model, text, failures
        self.draws: dict[str, Draw[Out]] = {}
        self.runs: list[Draw[Out]] = []
        self._started = 0

    def first(self) -> Draw[Out]:
        """The caller's own call."""
        used = Reported()
        config, held = self._attempt(used)
        return self._kept(self._tried(config), held, used)

    async def afirst(self) -> Draw[Out]:
        """The same on the running event loop."""
        used = Reported()
        config, held = self._attempt(used)
        return self._kept(await self._atried(config), held, used)

    def speculate(self, into: list[Draw[Out]]) -> Iterator[Out]:
        """The caller's own call, its chunks given out before anybody judged them; the draw goes ``into`` the list."""
        used = Reported()
        config, _ = self._attempt(used, held=False)
        chunks: list[Out] = []
        error: Exception | None = None
        try:
            for chunk in self._chain.stream(self._value, config, **self._kwargs):
                chunks.append(chunk)
                yield chunk
        except Exception as raised:  # noqa: BLE001  # sorted out in _kept
            error = raised
        into.append(self._kept((total(chunks), chunks) if error is None else error, [], used, chunks))

    async def aspeculate(self, into: list[Draw[Out]]) -> AsyncIterator[Out]:
        """The same on the running event loop."""
        used = Reported()
        config, _ = self._attempt(used, held=False)
        chunks: list[Out] = []
        error: Exception | None = None
        try:
            async for chunk in self._chain.astream(self._value, config, **self._kwargs):
                chunks.append(chunk)
                yield chunk
        except Exception as raised:  # noqa: BLE001  # sorted out in _kept
            error = raised
        into.append(self._kept((total(chunks), chunks) if error is None else error, [], used, chunks))

    def sample(self, request: SampleRequest) -> SampleResult:
        """``request.n`` more runs of the chain. What else the request asks for is the chain's own matter."""
        if request.messages is not self.step.messages and self._model is not None:
            return self._model.sample(request)
        configs, held, used = self._attempts(request.n)
        if request.n == 1:
            made: list[Any] = [self._tried(configs[0])]
        elif self.streaming:
            with get_executor_for_config(self.config) as executor:
                made = list(executor.map(self._tried, configs))
        else:
            inputs = [self._value] * request.n
            made = [_whole(x) for x in self._chain.batch(inputs, configs, return_exceptions=True, **self._kwargs)]
        return self._result(made, held, used)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same on the running event loop."""
        if request.messages is not self.step.messages and self._model is not None:
            return await self._model.asample(request)
        configs, held, used = self._attempts(request.n)
        if request.n == 1 or self.streaming:
            runs = [self._atried(config) for config in configs]
            made: list[Any] = await gather_with_concurrency(self.config.get("max_concurrency"), *runs)
        else:
            inputs = [self._value] * request.n
            outputs = await self._chain.abatch(inputs, configs, return_exceptions=True, **self._kwargs)
            made = [_whole(x) for x in outputs]
        return self._result(made, held, used)

    def _tried(self, config: RunnableConfig) -> tuple[Out, list[Out] | None] | Exception:
        try:
            if not self.streaming:
                return self._chain.invoke(self._value, config, **self._kwargs), None
            chunks = list(self._chain.stream(self._value, config, **self._kwargs))
        except Exception as error:  # noqa: BLE001  # sorted out in _kept
            return error
        return total(chunks), chunks

    async def _atried(self, config: RunnableConfig) -> tuple[Out, list[Out] | None] | Exception:
        try:
            if not self.streaming:
                return await self._chain.ainvoke(self._value, config, **self._kwargs), None
            chunks = [chunk async for chunk in self._chain.astream(self._value, config, **self._kwargs)]
        except Exception as error:  # noqa: BLE001  # sorted out in _kept
            return error
        return total(chunks), chunks

    def _attempt(self, used: Reported, *, held: bool = True) -> tuple[RunnableConfig, list[Held]]:
        """The configuration of the next run: a child of this call's run, tagged as LangChain's retry tags it."""
        self._started += 1
        child = self._run.get_child(f"retry:attempt:{self._started}" if self._started > 1 else None)
        kept = hold(child) if held else []
        child.add_handler(used, inherit=True)
        return patch_config(self.config, callbacks=child), kept

    def _attempts(self, n: int) -> tuple[list[RunnableConfig], list[list[Held]], list[Reported]]:
        used = [Reported() for _ in range(n)]
        attempts = [self._attempt(u) for u in used]
        return [a[0] for a in attempts], [a[1] for a in attempts], used

    def _kept(
        self,
        made: tuple[Out, list[Out] | None] | Exception,
        held: list[Held],
        used: Reported,
        chunks: list[Out] | None = None,
    ) -> Draw[Out]:
        """One run's draw. An exception that steers LangGraph is raised."""
        key, usage = f"run:{len(self.draws)}", used.usage()
        if not isinstance(made, Exception):
            output, chunks = made
            rollout = Rollout(self._text(output), id="r0", response_id=key, usage=usage)
            draw = Draw(rollout, output, chunks, held)
        else:
            if is_control_flow(made):
                raise made
            text = getattr(made, "llm_output", None)
            rollout = Rollout(text if isinstance(text, str) else "", id="r0", response_id=key, usage=usage)
            draw = Draw(rollout, None, chunks, [], made, broken=not isinstance(made, self._failures))
        self.runs.append(draw)
        if not draw.broken:
            self.draws[key] = draw
        return draw

    def _result(self, made: list[Any], held: list[list[Held]], used: list[Reported]) -> SampleResult:
        drawn = [self._kept(m, h, u) for m, h, u in zip(made, held, used, strict=True)]
        broken = [d.error for d in drawn if d.broken and d.error is not None]
        spent = sum((u.usage() for u in used), Usage())
        if len(broken) == len(drawn):
            raise self.failure(broken[0], calls=spent.calls) from broken[0]
        notes = tuple(f"{self.name}: {type(e).__name__}: {e}" for e in broken)
        return SampleResult(tuple(d.rollout for d in drawn if not d.broken), spent, notes)

    def failure(self, error: Exception, *, calls: int = 0) -> RfxError:
        """``error`` of the chain, as the engine knows errors."""
        if isinstance(error, RfxError):
            return error
        return SamplerError(f"{self.name}: {type(error).__name__}: {error}", calls=calls)


def _whole(output: Any) -> Any:
    return output if isinstance(output, Exception) else (output, None)
