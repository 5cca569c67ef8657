"""Are a rollout's token features the same through vLLM and through transformers? One JSON object.

Two vLLM servers serve a specialist and an ancestor; ``transformers`` reads the same weights in float32 in this process.
The specialist's rollouts are drawn from its server with token ids. Both models score them on both paths, and the token
features of the two paths are held against each other; so are those of each path with the rollouts in another order
and batched otherwise. At the edge of the top K two nearly equal tokens may swap places: a token of the edge is then in
one table and absent (-1000) from the other. Positions whose rows hold other tokens are counted and also shown apart.
So are those where the ancestor's row lacks tokens that the specialist's has: there the divergence is 1000 / T times
their share, hundreds of nats, and the rounding of float32 shows in its third decimal.

    vllm serve DIR_S --served-model-name specialist --dtype float32 --max-logprobs 100 --port 8801
    vllm serve DIR_A --served-model-name ancestor --dtype float32 --max-logprobs 100 --port 8802
    python benchmarks/scorers.py --specialist http://127.0.0.1:8801/v1 DIR_S --ancestor http://127.0.0.1:8802/v1 DIR_A

``--record FILE`` draws and scores a few short rollouts instead and keeps every request with its answer, for the tests.
"""

import argparse
import contextlib
import dataclasses
import gzip
import json
import random
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from rfx_agent import Rollout, SampleRequest, Step
from rfx_agent.errors import FeatureError, SamplerError
from rfx_agent.evidence.features import TokenFeatures, TopLogprobs, token_features
from rfx_agent.samplers.transformers import CausalModel, TransformersScorer
from rfx_agent.samplers.vllm.scorer import VLLMScorer, VLLMTokens, vllm_sampler

PROMPTS = (
    "What is 17 times 23? Think step by step.",
    "Sort these words alphabetically: pear, fig, apple, lime. Explain how.",
    "Write a Python function that reverses a string, then test it on 'naïve'.",
    "If all bloops are razzies and some razzies are lazzies, are some bloops lazzies?",
)
FEATURES = tuple(field.name for field in dataclasses.fields(TokenFeatures))
Drawn = list[tuple[Step, list[Rollout]]]


def draw(url: str, n: int, max_tokens: int, temperature: float) -> Drawn:
    drawn: Drawn = []
    with vllm_sampler("specialist", base_url=url, timeout=600) as sampler:
        for i, prompt in enumerate(PROMPTS):
            step = Step.of(prompt)
            request = SampleRequest(step.messages, n=n, temperature=temperature, max_tokens=max_tokens, seed=i)
            result = sampler.sample(request)
            if result.notes:
                raise SystemExit(f"the draw is not whole: {result.notes}")
            drawn.append((step, list(result.rollouts)))
    return drawn


def tables(scorer: Any, step: Step, rollouts: list[Rollout]) -> list[TopLogprobs]:
    found = scorer.score(step, rollouts).tables
    for table in found:
        if isinstance(table, FeatureError):
            raise table
    return list(found)


def paths(args: argparse.Namespace, k: int, models: Sequence[CausalModel], batch: int) -> dict[str, list[Any]]:
    """Per path, the scorers of the specialist and of the ancestor."""
    served = [("specialist", args.specialist[0]), ("ancestor", args.ancestor[0])]
    return {
        "vllm": [
            VLLMScorer(name, base_url=url, top_k=k, batch=batch, keep=0, timeout=600, specialist=models[0].encode)
            for name, url in served
        ],
        "transformers": [TransformersScorer(model, top_k=k, token_budget=256 * batch) for model in models],
    }


def features(scorers: Sequence[Any], drawn: Drawn, order: random.Random | None = None) -> dict[str, Any]:
    """Token features of all positions of all rollouts, and the tables' tokens; asked for in another order if told."""
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    rows: list[frozenset[int]] = []
    missing: list[float] = []
    started = time.perf_counter()
    rollouts = [rollout for _, some in drawn for rollout in some]
    places = list(range(len(rollouts)))
    if order is not None:
        order.shuffle(places)
    # With their prompts' ids beside them, rollouts of different steps can be scored at once.
    given = [rollouts[i] for i in places]
    pair = [dict(zip(places, tables(scorer, drawn[0][0], given), strict=True)) for scorer in scorers]
    seconds = round(time.perf_counter() - started, 2)
    for specialist, ancestor in ((pair[0][i], pair[1][i]) for i in range(len(rollouts))):
        found = token_features(specialist, ancestor)
        for name in FEATURES:
            columns[name] += getattr(found, name).tolist()
        for ids, logprobs, other in zip(specialist.ids, specialist.logprobs, ancestor.ids, strict=True):
            rows.append(frozenset([*ids.tolist(), *(-2 - other).tolist()]))
            # Each absent token counts 1000 / T in the divergence: so much is rounding in its share worth.
            weight = np.exp(logprobs / 0.6)
            missing.append(float(weight[~np.isin(ids, other)].sum() / weight.sum()))
    return {"columns": columns, "rows": rows, "missing": missing, "seconds": seconds}


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Absolute differences per feature: of all positions, of those whose rows hold the same tokens, and of those where
    the ancestor's row has every token that the specialist gives more than a millionth to."""
    same = np.array([a == b for a, b in zip(one["rows"], other["rows"], strict=True)])
    full = np.array(one["missing"]) <= 1e-6
    report: dict[str, Any] = {"positions": len(same), "rows_with_other_tokens": int((~same).sum())}
    report |= {"rows_of_the_ancestor_that_lack_a_token": int((~full).sum()), "features": {}}
    for name in FEATURES:
        gaps = np.abs(np.array(one["columns"][name]) - np.array(other["columns"][name]))
        values = np.abs(np.array(one["columns"][name]))
        report["features"][name] = {
            "max": float(gaps.max()),
            "median": float(np.median(gaps)),
            "max_where_rows_hold_the_same_tokens": float(gaps[same].max(initial=0.0)),
            "max_where_nothing_is_absent": float(gaps[full].max(initial=0.0)),
            "over_1e-3": int((gaps > 1e-3).sum()),
            "largest_over_1e-3_relative_to_its_value": float(
                (gaps[gaps > 1e-3] / values[gaps > 1e-3]).max(initial=0.0)
            ),
        }
    found = report["features"].values()
    report["within"] = all(one["max"] <= 1e-3 and one["median"] <= 1e-4 for one in found)
    return report


def compare(args: argparse.Namespace) -> dict[str, Any]:
    drawn = draw(args.specialist[0], args.n, args.max_tokens, args.temperature)
    models = [CausalModel(args.specialist[1]), CausalModel(args.ancestor[1])]
    report: dict[str, Any] = {
        "rollouts": sum(len(rollouts) for _, rollouts in drawn),
        "tokens": sum(len(r.logprobs) for _, rollouts in drawn for r in rollouts if r.logprobs is not None),
        "temperature": args.temperature,
    }
    for k in args.top_k:
        plain = paths(args, k, models, batch=4)
        mixed = paths(args, k, models, batch=3)
        found = {path: features(scorers, drawn) for path, scorers in plain.items()}
        found |= {f"{path}, shuffled": features(s, drawn, random.Random(k)) for path, s in mixed.items()}  # noqa: S311
        scale = {name: statistics.fmean(map(abs, found["vllm"]["columns"][name])) for name in FEATURES}
        report[f"k={k}"] = {
            "vllm against transformers": difference(found["vllm"], found["transformers"]),
            "vllm against itself shuffled": difference(found["vllm"], found["vllm, shuffled"]),
            "transformers against itself shuffled": difference(found["transformers"], found["transformers, shuffled"]),
            "mean magnitude": scale,
            "seconds": {path: one["seconds"] for path, one in found.items()},
        }
        for scorer in plain["vllm"] + mixed["vllm"]:
            scorer.close()
    return report


# --- an exchange to replay


class Recorder(ThreadingHTTPServer):
    """Stands between and keeps what is said; requests go to the server of the model that they name."""

    daemon_threads = True

    def __init__(self, urls: dict[str, str]) -> None:
        self.kept: list[dict[str, Any]] = []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(handler) -> None:  # noqa: N805
                raw = handler.rfile.read(int(handler.headers["Content-Length"]))
                body = json.loads(raw)
                root = urls.get(body["model"], urls["ancestor"]).removesuffix("/v1")
                request = urllib.request.Request(  # noqa: S310  # the URLs are the caller's
                    root + handler.path, raw, {"Content-Type": "application/json"}
                )
                try:
                    with urllib.request.urlopen(request) as response:  # noqa: S310
                        status, answer = response.status, response.read()
                except urllib.error.HTTPError as error:
                    status, answer = error.code, error.read()
                with lock:
                    self.kept.append(
                        {"path": handler.path, "request": body, "status": status, "answer": json.loads(answer)}
                    )
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(answer)))
                handler.end_headers()
                handler.wfile.write(answer)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


SYSTEM = "Answer briefly."
PLAN: dict[str, Any] = {
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "What is 6 times 7? Say why. 🎉"}],
    "draw": {"n": 2, "temperature": 1.3, "max_tokens": 24, "seed": 7},
    "continue": {"n": 1, "temperature": 0.0, "max_tokens": 12, "prefix": "Six times seven is"},
    "top_k": 20,
    "too_long": 4000,
}


def record(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the tests ask for; ``PLAN`` is stored beside it, so that they ask the same."""
    server = Recorder({"specialist": args.specialist[0], "ancestor": args.ancestor[0]})
    step, k = Step(tuple(PLAN["messages"])), PLAN["top_k"]
    with vllm_sampler("specialist", base_url=server.url, top_k=k) as sampler:
        drawn = list(sampler.sample(SampleRequest(step.messages, **PLAN["draw"])).rollouts)
        continued = sampler.sample(SampleRequest(step.messages, **PLAN["continue"])).rollouts[0]
    start = len(PLAN["continue"]["prefix"])
    rollouts = [*drawn, dataclasses.replace(continued, start=start)]
    with VLLMTokens("specialist", base_url=server.url) as tokens:
        for model, batch in (("specialist", 8), ("ancestor", 8), ("ancestor", 1)):
            with VLLMScorer(model, base_url=server.url, top_k=k, batch=batch, specialist=tokens) as scorer:
                scorer.score(step, rollouts)
    with VLLMScorer("ancestor", base_url=server.url, top_k=k, keep=0) as scorer:
        scorer.score(step, rollouts)
        for rollout in rollouts:  # tokenized by the server, and checked by decoding
            scorer.score(step, [dataclasses.replace(rollout, prompt_ids=None)])
            scorer.score(step, [dataclasses.replace(rollout, prompt_ids=None, logprobs=None)])
    with VLLMScorer("ancestor", base_url=server.url, top_k=k) as scorer:
        scorer.score(step, [rollouts[0], dataclasses.replace(rollouts[1], prompt_ids=(1,) * PLAN["too_long"])])
    with VLLMScorer("nobody", base_url=server.url, top_k=k) as scorer, contextlib.suppress(SamplerError):
        scorer.score(step, rollouts[:1])
    kept = {json.dumps([one["path"], one["request"]], sort_keys=True): one for one in server.kept}
    raw = json.dumps(
        {"plan": PLAN, "exchange": list(kept.values())}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    with Path(args.record).open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(raw)
    return {"recorded": len(kept), "bytes": len(raw)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for model in ("specialist", "ancestor"):
        parser.add_argument(f"--{model}", nargs=2, required=True, metavar=("URL", "DIR"), help="server and weights")
    parser.add_argument("--top-k", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--n", type=int, default=2, help="rollouts per prompt")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--record", metavar="FILE")
    args = parser.parse_args()
    print(json.dumps(record(args) if args.record else compare(args), indent=2))


if __name__ == "__main__":
    main()
