"""What the fork server runs once, so that no worker pays for it: imports, and the first use of the SDK's clients.

It asks a port on which nothing answers; no connection, thread or database is left open.
"""

import asyncio
import contextlib

from benchmarks.chaos import budgets, worker  # noqa: F401  # imported for the processes to come
from benchmarks.chaos.parts import recovery, sampler, step_of
from rfx_agent import SampleRequest
from rfx_agent.adapters.graph.recovery_graph import recovery_graph
from rfx_agent.budgets.at import store_at
from rfx_agent.errors import SamplerError

_ASK = SampleRequest(step_of("warm").messages)
_model = sampler("http://127.0.0.1:9", max_retries=0)


async def _once() -> None:
    with contextlib.suppress(SamplerError):
        await _model.asample(_ASK)
    await _model.aclose()


with contextlib.suppress(SamplerError):
    _model.sample(_ASK)
asyncio.run(_once())
recovery_graph(recovery(sampler("http://127.0.0.1:9")))
store_at("sqlite:///never-opened.db").close()
