"""A cascade of two real models: the ledger's tokens and dollars per model are the servers' own counts."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import xllamacpp

from rfx_agent import LocalSampler, OpenAISampler, Recovery, RetryBudget, SharedBudget, Step, Window
from rfx_agent.budgets import MemoryStore, Price
from rfx_agent.remedies import Delegate, Retry
from rfx_agent.samplers.weights.cache import fetch
from rfx_agent.samplers.weights.known import WEIGHTS
from rfx_agent.verifiers import ExactVerifier

SMALL, LARGE = Price(prompt=0.1, completion=0.4), Price(prompt=0.5, completion=2.0)


class Meter(ThreadingHTTPServer):
    """Passes requests on to a server and adds up what it says that it has used."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target, self.used, self.lock = target, Counter[str](), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Forward(BaseHTTPRequestHandler):
    server: Meter

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {"Content-Type": "application/json", "Authorization": self.headers["Authorization"]}
        request = urllib.request.Request(self.server.target + self.path, body, headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request) as reply:  # noqa: S310  # loopback
            raw = reply.read()
        with self.server.lock:
            usage = json.loads(raw)["usage"]
            self.server.used.update({name: usage[name] for name in ("prompt_tokens", "completion_tokens")})
            self.server.used["requests"] += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, tuple[OpenAISampler, Meter]]]:
    made, servers = {}, []
    for name in ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"):
        local = LocalSampler(name)
        server = local._serve(xllamacpp, fetch(WEIGHTS[name]), "k")
        meter = Meter(server.listening_address)
        threading.Thread(target=meter.serve_forever, daemon=True).start()
        made[name] = (OpenAISampler(name, base_url=meter.url, api_key="k", usage_of="choice", top_logprobs=None), meter)
        servers.append(server)
    yield made
    for sampler, meter in made.values():
        sampler.close()
        meter.shutdown()


def test_the_ledger_of_a_cascade_is_what_the_servers_counted(models: Any) -> None:
    (small, small_meter), (large, large_meter) = models.values()
    store = MemoryStore()
    shared = SharedBudget(store=store, limits=(Window("model", "tokens", 10**7, "day"),)).scoped(model=small.name)
    recovery = Recovery(
        small,
        ExactVerifier(),
        remedies=[Retry(), Delegate(large, "delegate_large", price=LARGE)],
        price=SMALL,
        budget=RetryBudget(attempts=4, usd=1.0),
        shared=shared,
        max_tokens=96,
        seed=11,
    )
    tokens, usd = Counter[str](), Counter[str]()
    normal = 0
    for a, b in ((738, 962), (847, 593), (64, 73), (391, 877)):
        step = Step.of(f"What is {a} times {b}? End with one line: Answer: <number>", expected=str(a * b))
        case = recovery.run(step)
        assert case.outcome is not None
        normal += case.rollouts[0].usage.tokens
        for name, spent in case.ledger.by_model.items():
            if name != "exact":
                tokens[name] += spent.tokens
                usd[name] += spent.usd
    for sampler, meter, price in ((small, small_meter, SMALL), (large, large_meter, LARGE)):
        used = meter.used
        assert used["requests"] > 0
        assert tokens[sampler.name] == used["prompt_tokens"] + used["completion_tokens"]
        billed = (used["prompt_tokens"] * price.prompt + used["completion_tokens"] * price.completion) / 1e6
        assert usd[sampler.name] == pytest.approx(billed)
    spent = {account.name.split()[0]: account.spent for account in store.accounts()}
    # The first draws are normal traffic, which limits on recovery do not count.
    assert spent[f"model={small.name}"] == tokens[small.name] - normal
    assert spent[f"model={large.name}"] == tokens[large.name]
