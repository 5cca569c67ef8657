"""A node of somebody's graph as a sampler: a draw is one more run of the node on the same state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config, patch_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    set_config_context,
)
from langchain_core.runnables.utils import gather_with_concurrency
from langgraph.errors import GraphInterrupt

from rfx_agent._errors import ConfigError, RfxError, SamplerError, is_control_flow
from rfx_agent._types import Rollout, SampleRequest, SampleResult, Step, Usage
from rfx_agent.adapters._chain.draw import Reported
from rfx_agent.adapters._graph.state import Answer, answer_in, located
from rfx_agent.adapters._messages import rollout_of
from rfx_agent.ports import Sampler

__all__ = ["Call", "NodeDraws"]

_NOSTREAM = "nostream"  # LangGraph's tag for model calls that stream_mode "messages" leaves out


@dataclass(frozen=True, slots=True)
class Call:
    """A node with the state that it was given, to be run again under another config; one side or both."""

    run: Callable[[RunnableConfig], Any] | None
    arun: Callable[[RunnableConfig], Awaitable[Any]] | None


class NodeDraws:
    """Draws of one step by running its node again; prompts other than the step's own (a tool's) go to ``model``.

    Attempts carry the tag ``retry:attempt:N`` on everything they run, and are left out of token streams: the first
    run, the caller's own, is attempt 1. Sync attempts run one after the other, because a node need not be safe to
    run in several threads; async attempts run at once, under the config's ``max_concurrency``.

    Attributes:
        outputs: what each run gave, by response id.
    """

    continues_prefix = False
    takes_temperature = False

    def __init__(self, name: str, call: Call, key: str, step: Step, model: Sampler) -> None:
        self.name, self.outputs = name, dict[str, Any]()
        self._call, self._key, self._step, self._model = call, key, step, model
        self._made = 0

    def take(self, output: Any, answer: Answer, usage: Usage | None = None) -> Rollout:
        """The run that gave ``output``, as a rollout."""
        key = f"run:{self._made}"
        name = f"r{self._made}"  # the first one's; the engine numbers the others
        self._made += 1
        if answer.message is None:
            rollout = Rollout(answer.text, id=name, response_id=key, usage=usage or Usage())
        else:
            rollout = rollout_of(answer.message, response_id=answer.message.id or key, name=name)
            rollout = rollout if usage is None else replace(rollout, usage=usage)
        self.outputs.setdefault(rollout.response_id or key, output)
        return rollout

    def sample(self, request: SampleRequest) -> SampleResult:
        """``request.n`` more runs of the node. What else the request asks for is the node's own matter."""
        if request.messages is not self._step.messages or self._call.run is None:
            return self._model.sample(request)
        used = [Reported() for _ in range(request.n)]
        configs = [self._config(i, u, get_callback_manager_for_config) for i, u in enumerate(used)]
        return self._result([self._tried(config) for config in configs], used)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """The same on the running event loop."""
        if request.messages is not self._step.messages or self._call.arun is None:
            return await self._model.asample(request)
        used = [Reported() for _ in range(request.n)]
        configs = [self._config(i, u, get_async_callback_manager_for_config) for i, u in enumerate(used)]
        limit = configs[0].get("max_concurrency")
        made = await gather_with_concurrency(limit, *(self._atried(config) for config in configs))
        return self._result(made, used)

    def _config(self, i: int, used: Reported, manager_of: Callable[[RunnableConfig], Any]) -> RunnableConfig:
        config = ensure_config()
        manager = manager_of(config)
        manager.add_tags([f"retry:attempt:{self._made + i + 1}", _NOSTREAM], inherit=True)
        manager.add_handler(used, inherit=True)
        return patch_config(config, callbacks=manager)

    def _tried(self, config: RunnableConfig) -> Any:
        assert self._call.run is not None  # noqa: S101  # sample has looked
        try:
            with set_config_context(config) as context:
                return context.run(self._call.run, config)
        except Exception as error:
            if is_control_flow(error) and not isinstance(error, GraphInterrupt):
                raise
            return self._raised(error)

    async def _atried(self, config: RunnableConfig) -> Any:
        assert self._call.arun is not None  # noqa: S101  # asample has looked
        try:
            with set_config_context(config) as context:
                return await asyncio.create_task(_awaited(self._call.arun, config), context=context)
        except Exception as error:
            if is_control_flow(error) and not isinstance(error, GraphInterrupt):
                raise
            return self._raised(error)

    def _raised(self, error: Exception) -> Exception:
        if isinstance(error, GraphInterrupt):
            # A resume would run this node, and everything that was paid for in it, from its top.
            return ConfigError(
                f"recoverable: {self.name} asked for an interrupt in a further attempt; put the interrupt into a node "
                "of its own"
            )
        return error

    def _result(self, made: Sequence[Any], used: Sequence[Reported]) -> SampleResult:
        spent = sum((u.usage() for u in used), Usage())
        rollouts, notes, errors = [], [], []
        for output, reported in zip(made, used, strict=True):
            if isinstance(output, Exception):
                errors.append(output)
                notes.append(f"{self.name}: {type(output).__name__}: {output}")
            elif (answer := answer_in(located(output, self._key))) is not None:
                rollouts.append(self.take(output, answer, reported.usage()))
            else:
                notes.append(f"{self.name} was run again and gave no answer")
        if errors and not rollouts:
            if isinstance(errors[0], RfxError):
                raise errors[0]
            raise SamplerError(notes[0], calls=spent.calls) from errors[0]
        return SampleResult(tuple(rollouts), spent, tuple(dict.fromkeys(notes)))


async def _awaited(run: Callable[[RunnableConfig], Awaitable[Any]], config: RunnableConfig) -> Any:
    return await run(config)
