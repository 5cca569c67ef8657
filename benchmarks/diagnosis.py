"""What diagnosing one failure costs beside the sampling that it diagnoses: one JSON object.

A failure is one prompt with its rollouts, drawn at T = 0.6 and brought to one length with more of their own text where
one stopped early. Sampling is timed through llama.cpp and in the process; the diagnosis is one prefill per model and
the features. Each is timed after a warm-up, on the same machine, in one process.

    python benchmarks/diagnosis.py [--tiny] [--device cuda] [--dtype bfloat16]
"""

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rfx_agent import LocalSampler, Rollout, SampleRequest, Step
from rfx_agent.evidence.features import evidence_of
from rfx_agent.samplers.transformers import CausalModel, TransformersScorer

PROMPT = (
    "A tank holds 240 litres. A pump fills it at 7 litres a minute while a leak drains 3 litres every 2 minutes. The "
    "tank starts a quarter full. Work out step by step, with every intermediate result and a check of each one, after "
    "how many minutes it is full, and write the answer as a fraction."
)


class Clock:
    """Wall-clock seconds of named parts, and the processor's seconds, which hold on a machine that others use too."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        self.wall[name], self.cpu[name] = time.perf_counter() - wall, time.process_time() - cpu
        return result


def to_length(rollouts: tuple[Rollout, ...], model: CausalModel, tokens: int) -> list[Rollout]:
    """Each rollout with ``tokens`` tokens: cut, or followed by its own text again."""
    made = []
    for i, rollout in enumerate(rollouts):
        text = rollout.text or "?"
        while len(ids := model.encode(text)) < tokens:
            text += "\n" + (rollout.text or "?")
        while len(ids) > tokens or model.encode(model.decode(ids)) != ids:
            ids = ids[: min(len(ids), tokens + 1) - 1]
        made.append(Rollout(model.decode(ids), response_id=f"r{i}", finish_reason="length"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specialist", default="qwen2.5-coder-0.5b")
    parser.add_argument("--ancestor", default="qwen2.5-coder-1.5b")
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None, help="of PyTorch; llama.cpp samples on the CPU")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-llama", action="store_true", help="without sampling through llama.cpp")
    parser.add_argument("--tiny", action="store_true", help="SmolLM2-135M against itself, 60 tokens: a smoke test")
    options = parser.parse_args()
    if options.tiny:
        options.specialist = options.ancestor = "smollm2-135m"
        options.tokens = min(options.tokens, 60)
    given = {"dtype": options.dtype, "device": options.device, "threads": options.threads}
    step = Step.of(PROMPT)
    request = SampleRequest(step.messages, n=options.rollouts, temperature=0.6, max_tokens=options.tokens, seed=0)
    warm = replace(request, n=1, max_tokens=4)
    clock = Clock()
    drawn: dict[str, int] = {}
    rollouts: tuple[Rollout, ...] = ()

    if not options.no_llama:
        with LocalSampler(options.specialist, threads=options.threads, context=1024) as sampler:
            sampler.sample(warm)
            result = clock.time("sampling_llama_cpp", lambda: sampler.sample(request))
        rollouts, drawn["sampling_llama_cpp"] = result.rollouts, result.usage.completion_tokens

    specialist = CausalModel(options.specialist, **given)
    clock.time("load_specialist", specialist.start)
    if importlib.util.find_spec("rfx_agent.samplers.transformers.sampler"):
        from rfx_agent.samplers.transformers import TransformersSampler

        inside = TransformersSampler(specialist)
        inside.sample(warm)
        result = clock.time("sampling_in_process", lambda: inside.sample(request))
        rollouts, drawn["sampling_in_process"] = rollouts or result.rollouts, result.usage.completion_tokens

    ancestor = CausalModel(options.ancestor, **given)
    clock.time("load_ancestor", ancestor.start)
    failure = to_length(rollouts, specialist, options.tokens)
    own, other = TransformersScorer(specialist), TransformersScorer(ancestor, specialist=specialist)
    short = [replace(failure[0], text="a b c")]
    clock.time("check_tokenizers", lambda: other.score(step, short))  # the first call checks
    own.score(step, short)
    mine = clock.time("prefill_specialist", lambda: own.score(step, failure))
    tables = [replace(rollout, logprobs=table) for rollout, table in zip(failure, mine.tables, strict=True)]
    theirs = clock.time("prefill_ancestor", lambda: other.score(step, tables))
    evidence = clock.time("features", lambda: evidence_of(tables, theirs.tables))

    parts = ("prefill_specialist", "prefill_ancestor", "features")
    # Sampling that stopped early is brought to the number of tokens that the diagnosis reads.
    wanted = options.rollouts * options.tokens
    ratios = {
        unit: {
            name: {
                "diagnosis": round(sum(seconds[part] for part in parts) * count / wanted / seconds[name], 3),
                "ancestor_prefill": round(seconds["prefill_ancestor"] * count / wanted / seconds[name], 3),
            }
            for name, count in drawn.items()
        }
        for unit, seconds in (("wall", clock.wall), ("cpu", clock.cpu))
    }
    print(
        json.dumps(
            {
                "specialist": options.specialist,
                "ancestor": options.ancestor,
                "device": str(specialist.device),
                "machine": platform.machine(),
                "dtype": options.dtype,
                "rollouts": len(failure),
                "tokens_each": options.tokens,
                "tokens_read": mine.usage.prompt_tokens + theirs.usage.prompt_tokens,
                "seconds": {name: round(value, 4) for name, value in clock.wall.items()},
                "cpu_seconds": {name: round(value, 4) for name, value in clock.cpu.items()},
                "tokens_drawn": drawn,
                "over_sampling": ratios,
                "evidence": evidence.evidence,
                "features": evidence.features and dict(evidence.features),
                "caveats": evidence.caveats,
            }
        )
    )


if __name__ == "__main__":
    main()
