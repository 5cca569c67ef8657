"""Decoding with two models: on real weights, against loops that recompute everything at every token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sampler_conformance import PROMPT, SamplerConformance, ask

from rfx_agent.errors import ConfigError, SamplerError, TokenizerMismatch
from rfx_agent.evidence.features import rollout_features, token_features
from rfx_agent.ports import Steerer
from rfx_agent.records import Rollout, SampleRequest, SampleResult, Step
from rfx_agent.samplers.transformers import CausalModel, TransformersSampler, TransformersSteerer, steerer
from rfx_agent.samplers.transformers.batcher import Batcher
from rfx_agent.samplers.transformers.plans import Plan, Row
from rfx_agent.samplers.transformers.sites import Tokens

torch = pytest.importorskip("torch", reason="the extra 'transformers' is not installed")
core = pytest.importorskip("rfx_agent.samplers.transformers.decode")
CANDIDATES, decode, draw, mixture = core.CANDIDATES, core.decode, core.draw, core.mixture

both = pytest.mark.parametrize("how", ["sync", "async"])
STEP = Step.of("A train goes 60 km in 45 minutes. How fast is it in km/h? Think step by step.")
PROMPTS = ("Say hi.", "Name three colours, then say why you like one of them.", "What is 2+2? Explain.")
MOST = 22  # tokens of the rollout that is steered
OPERATORS = ("local_temp", "sparse_steer", "sparse_steer_random", "dense_steer")


@pytest.fixture(scope="module")
def model() -> CausalModel:
    model = CausalModel("smollm2-135m", device="cpu")
    model.start()
    return model


@pytest.fixture(scope="module")
def other(model: CausalModel) -> CausalModel:
    """The same weights with noise on some of them: another model with the same tokenizer."""
    noisy = CausalModel("smollm2-135m", device="cpu", name="noisy")
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in noisy.module.model.layers[::3]:
            weight = layer.mlp.down_proj.weight
            weight.add_(torch.randn(weight.shape, generator=noise) * weight.std() * 0.5)
    return noisy


@pytest.fixture(scope="module")
def failed(model: CausalModel) -> Rollout:
    with TransformersSampler(model) as sampler:
        return sampler.sample(SampleRequest(STEP.messages, max_tokens=MOST, temperature=0.8, seed=3)).rollouts[0]


def prompt(model: CausalModel, i: int) -> tuple[int, ...]:
    return model.prompt_ids([{"role": "user", "content": PROMPTS[i]}])


def taken(rollout: Rollout) -> tuple[int, ...]:
    assert rollout.logprobs is not None
    return tuple(rollout.logprobs.taken.tolist())


def greedy(model: CausalModel, context: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The decode of ``transformers`` itself, the stop token included."""
    from transformers import GenerationConfig

    ends = sorted(model.stop_ids)
    config = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    ids = torch.tensor([context])
    out = model.module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return tuple(out[0, len(context) :].tolist())


def literal(specialist: CausalModel, ancestor: CausalModel | None, row: Row) -> tuple[int, ...]:
    """One row, no cache and no batch, the mixture and the draw in NumPy."""
    ids, dice = list(row.context), torch.Generator().manual_seed(row.seed or 0)
    for t in range(row.max_new_tokens):
        logits = next_logits(specialist, ids)
        if row.plan.mixing is not None and (row.plan.head is None or t < row.plan.head):
            assert ancestor is not None
            logits = literal_mixture(logits, next_logits(ancestor, ids), row.plan.mixing, row.plan.alpha)
        heat = row.plan.head_temperature if row.plan.head is None or t < row.plan.head else row.plan.temperature
        ids.append(int(logits.argmax()) if heat == 0 else literal_draw(logits, heat, noise(dice)))
        if ids[-1] in row.stop_ids:
            break
    return tuple(ids[len(row.context) :])


def noise(dice: Any) -> np.ndarray:
    numbers: np.ndarray = torch.rand(CANDIDATES + 2, generator=dice, dtype=torch.float64).numpy()
    return numbers


def literal_draw(logits: np.ndarray, heat: float, u: np.ndarray) -> int:
    """A race of the 256 most probable tokens and all others as one; among those, the inverse of their distribution."""
    p = np.exp((logits - logits.max()) / heat)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    first, rest = order[:CANDIDATES], np.sort(order[CANDIDATES:])
    finish = [-np.log(u[i]) / p[token] for i, token in enumerate(first)]
    if len(rest) and -np.log(u[CANDIDATES]) / p[rest].sum() < min(finish):
        return int(rest[np.flatnonzero(np.cumsum(p[rest] / p[rest].sum()) > u[-1])[0]])
    return int(first[np.argmin(finish)])


def next_logits(model: CausalModel, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        out: np.ndarray = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()
    return out


def literal_mixture(s: np.ndarray, a: np.ndarray, mixing: str, alpha: float) -> np.ndarray:
    if mixing == "path":
        return alpha * s + (1 - alpha) * a
    p, q = np.exp(s - s.max()), np.exp(a - a.max())
    with np.errstate(divide="ignore"):
        return np.log(alpha * p / p.sum() + (1 - alpha) * q / q.sum())


# --- formulas


@pytest.mark.parametrize("mixing", ["path", "coverage"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_the_mixture_is_the_papers(mixing: Any, alpha: float) -> None:
    rng = np.random.default_rng(0)
    s, a = rng.normal(0, 5, 50), rng.normal(0, 5, 50)
    got = mixture(torch.tensor(s), torch.tensor(a), mixing, alpha).double().numpy()
    want = literal_mixture(s, a, mixing, alpha)
    # Up to a constant: as distributions.
    p, q = np.exp(got - got.max()), np.exp(want - want.max())
    np.testing.assert_allclose(p / p.sum(), q / q.sum(), atol=1e-6)


def test_by_hand_the_two_mixtures_differ() -> None:
    s, a = torch.log(torch.tensor([0.8, 0.2])), torch.log(torch.tensor([0.2, 0.8]))
    assert mixture(s, a, "coverage", 0.5).exp().tolist() == pytest.approx([0.5, 0.5])
    # 0.8^0.75 * 0.2^0.25 : 0.2^0.75 * 0.8^0.25 = sqrt(4) : 1
    assert mixture(s, a, "path", 0.75).softmax(-1).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert mixture(s, a, "coverage", 0.75).exp().tolist() == pytest.approx([0.65, 0.35])


def test_padding_of_one_vocabulary_is_never_drawn() -> None:
    s, a = torch.zeros(5), torch.zeros(3)
    assert mixture(s, a, "path", 0.5).tolist() == [0, 0, 0, -np.inf, -np.inf]
    assert mixture(a, s, "coverage", 0.5).exp().tolist() == pytest.approx([1 / 3] * 3)


def test_a_draw_is_the_race_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    # Most probable first: the clocks of 0.5, 0.3 and 0.2. -log(u) / p is 1.39, 1.19 and 1.78 at first.
    u = np.full(CANDIDATES + 2, 0.5)
    for numbers, want in (((0.5, 0.7, 0.7), 2), ((0.8, 0.7, 0.7), 0), ((0.5, 0.5, 0.9), 3)):
        u[:3] = numbers
        assert draw(logits, [1.0], [torch.tensor(u)]) == [want]
        assert draw(logits, [0.0], [torch.tensor(u)]) == [0]
        assert draw(logits, [1e-30], [torch.tensor(u)]) == [0]


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_draws_have_the_distribution(heat: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 2 * CANDIDATES)
    logits[:3] += 6
    p = np.exp(logits / heat) / np.exp(logits / heat).sum()
    dice = torch.Generator().manual_seed(0)
    many = torch.tensor(logits).float().expand(500, -1)
    got = [
        token for _ in range(12) for token in draw(many, [heat] * 500, [torch.tensor(noise(dice)) for _ in range(500)])
    ]
    seen = np.bincount(got, minlength=len(p)) / len(got)
    np.testing.assert_allclose(seen[:3], p[:3], atol=0.025)
    # The rest as a whole, and its two halves.
    tail = np.argsort(-p)[CANDIDATES:]
    assert seen[tail].sum() == pytest.approx(p[tail].sum(), abs=0.02)
    assert seen[tail[: len(tail) // 2]].sum() == pytest.approx(p[tail[: len(tail) // 2]].sum(), abs=0.02)
    one = noise(dice)
    assert draw(many[:1], [heat], [torch.tensor(one)]) == [literal_draw(logits.astype(np.float32), heat, one)]


# --- batches against the literal loop


def plans() -> list[Plan]:
    return [
        Plan(0.0),
        Plan(0.9),
        Plan(0.0, head=3, head_temperature=1.5),
        Plan(0.7, head=1, head_temperature=0.7, mixing="path", alpha=0.5),
        Plan(0.0, head=1, head_temperature=0.0, mixing="coverage", alpha=0.2),
        Plan(0.8, head=None, head_temperature=0.8, mixing="coverage", alpha=0.4),
        Plan(0.0, head=4, head_temperature=0.0, mixing="path", alpha=0.3),
    ]


def test_cached_batches_are_what_a_loop_without_cache_gives(model: CausalModel, other: CausalModel) -> None:
    rows = [
        Row(prompt(model, i % 3), plan, 4 + i % 3, seed=i, stop_ids=model.stop_ids) for i, plan in enumerate(plans())
    ]
    want = [literal(model, other, row) for row in rows]
    for most in (3, 16):
        got = decode(model.module, rows, ancestor=other.module, max_rows=most)
        assert [one.ids for one in got] == want
        ends = ["stop" if ids[-1] in model.stop_ids else "length" for ids in want]
        assert [one.finish_reason for one in got] == ends


@pytest.mark.nightly
def test_rows_end_and_others_join(model: CausalModel) -> None:
    rows = [Row(prompt(model, 0), Plan(0.0), most, stop_ids=model.stop_ids) for most in (3, 40, 5)]
    rows += [Row(prompt(model, i), Plan(0.0), 7, stop_ids=model.stop_ids) for i in (1, 2)]
    got = decode(model.module, rows, max_rows=2)
    assert [one.ids for one in got] == [greedy(model, row.context, row.max_new_tokens) for row in rows]
    assert got[1].finish_reason == "stop"
    assert got[1].ids[-1] in model.stop_ids
    assert len(got[1].ids) < 40


def test_the_table_is_the_specialists_at_temperature_1(model: CausalModel, other: CausalModel) -> None:
    plan = Plan(0.0, head=None, head_temperature=0.9, mixing="path", alpha=0.1)
    row = Row(prompt(model, 2), plan, 5, seed=1, stop_ids=model.stop_ids, top_k=7)
    (one,) = decode(model.module, [row], ancestor=other.module)
    assert one.top_ids is not None
    assert one.top_logprobs is not None
    for t in range(len(one.ids)):
        logits = next_logits(model, [*row.context, *one.ids[:t]])
        lps = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best = np.argsort(-lps)[:7]
        assert one.top_ids[t].tolist() == best.tolist()
        np.testing.assert_allclose(one.top_logprobs[t], lps[best], atol=1e-3)


def test_temperatures_and_mixing_are_recorded(model: CausalModel, other: CausalModel) -> None:
    plan = Plan(0.3, head=2, head_temperature=1.2, mixing="coverage")
    (one,) = decode(model.module, [Row(prompt(model, 1), plan, 4, seed=0)], ancestor=other.module)
    assert one.temperatures == (1.2, 1.2, 0.3, 0.3)
    assert one.mixed == (True, True, False, False)
    with pytest.raises(SamplerError, match="no ancestor"):
        decode(model.module, [Row(prompt(model, 1), plan, 4)])


def test_an_ancestor_runs_only_while_a_row_mixes(model: CausalModel, other: CausalModel) -> None:
    calls: list[int] = []
    hook = other.module.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    context = prompt(model, 0)
    sparse = Row(context, Plan(0.0, head=1, mixing="path"), 6)
    short = Row(context, Plan(0.0, head=3, mixing="path"), 6)
    try:
        decode(model.module, [sparse] * 3, ancestor=other.module)
        assert calls == [len(context)]  # one prefill for three draws, and no step
        calls.clear()
        decode(model.module, [sparse, short, short], ancestor=other.module)
        assert calls == [len(context), 2, 2]
    finally:
        hook.remove()


@pytest.mark.nightly
def test_contexts_that_begin_each_other_are_read_once(model: CausalModel) -> None:
    from rfx_agent.samplers.transformers.lane import Lane
    from rfx_agent.samplers.transformers.rows import Prompts

    long, lone = prompt(model, 1), prompt(model, 2)
    cut = [long, long[:9], lone, long[:20], long]
    prompts, lane = Prompts(cut), Lane(model.module)
    for i, context in enumerate(cut):
        (_, end), logits = prompts.take(lane, i)
        assert end == len(context)
        np.testing.assert_allclose(logits.numpy(), next_logits(model, list(context)), atol=2e-3)
    assert prompts.read == len(long) + len(lone)
    rows = [Row(context, Plan(0.0), 5) for context in cut]
    assert [one.ids for one in decode(model.module, rows)] == [greedy(model, row.context, 5) for row in rows]


def test_seeds_decide_whatever_is_beside_them(model: CausalModel) -> None:
    rows = [Row(prompt(model, i % 3), Plan(1.0), 8, seed=i) for i in range(6)]
    together = decode(model.module, rows)
    again = decode(model.module, rows[::-1], max_rows=4)[::-1]
    alone = [decode(model.module, [row])[0] for row in rows[:2]]
    assert [x.ids for x in together] == [x.ids for x in again]
    assert [x.ids for x in together[:2]] == [x.ids for x in alone]
    fresh = decode(model.module, [replace(rows[0], seed=None)] * 3)
    assert len({x.ids for x in fresh}) > 1


# --- the sampler


class TestConformance(SamplerConformance):
    @pytest.fixture
    def sampler(self, model: CausalModel) -> Any:
        return TransformersSampler(model)

    @pytest.fixture
    def dead_sampler(self, model: CausalModel) -> Any:
        sampler = TransformersSampler(model)
        sampler.close()
        return sampler


@both
def test_a_draw_is_whole(model: CausalModel, how: str) -> None:
    result = ask(TransformersSampler(model), SampleRequest(PROMPT, n=3, max_tokens=10, seed=1), how)
    assert result.notes == ()
    assert len({rollout.text for rollout in result.rollouts}) > 1
    for rollout in result.rollouts:
        assert rollout.logprobs is not None
        assert rollout.logprobs.space == "ids"
        assert rollout.logprobs.ids.shape == (10, 100)
        assert "".join(rollout.tokens or ()) == rollout.text == model.decode(taken(rollout))
        assert rollout.prompt_ids == model.prompt_ids(PROMPT)
    assert result.usage.prompt_tokens == len(model.prompt_ids(PROMPT))
    assert (result.usage.completion_tokens, result.usage.calls) == (30, 1)


def test_draw_i_has_the_seed_plus_i(model: CausalModel) -> None:
    sampler = TransformersSampler(model)
    request = SampleRequest(PROMPT, n=3, max_tokens=8, temperature=1.0, seed=40)
    texts = [x.text for x in sampler.sample(request).rollouts]
    assert texts == [sampler.sample(replace(request, n=1, seed=40 + i)).rollouts[0].text for i in range(3)]


def test_a_prefix_is_continued_from_its_tokens(model: CausalModel) -> None:
    request = SampleRequest(PROMPT, max_tokens=6, temperature=0.0, prefix="Red, green and")
    rollout = TransformersSampler(model).sample(request).rollouts[0]
    context = model.prompt_ids(PROMPT, prefix="Red, green and")
    assert rollout.prompt_ids == context
    assert taken(rollout) == greedy(model, context, 6)
    assert rollout.start == len("Red, green and")
    assert rollout.text == "Red, green and" + "".join(rollout.tokens or ())


def test_the_end_of_a_turn_is_a_position(model: CausalModel) -> None:
    request = SampleRequest(({"role": "user", "content": "Say hi."},), max_tokens=60, temperature=0.0)
    rollout = TransformersSampler(model, top_k=3).sample(request).rollouts[0]
    assert rollout.finish_reason == "stop"
    assert (rollout.tokens or ())[-1] == ""
    assert taken(rollout)[-1] in model.stop_ids
    assert rollout.usage.completion_tokens == len(rollout.tokens or ())


def test_what_no_sampler_can_do(model: CausalModel) -> None:
    sampler = TransformersSampler(model)
    for options in ({"n": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            sampler.sample(SampleRequest(PROMPT, **options))  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="shorten it"):
        sampler.sample(SampleRequest(({"role": "user", "content": "word " * (model.context + 1)},)))
    for options in ({"top_k": 0}, {"max_rows": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            TransformersSampler(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CausalModel"):
        TransformersSampler("smollm2-135m")  # type: ignore[arg-type]
    quiet = TransformersSampler(model, top_k=None).sample(SampleRequest(PROMPT, max_tokens=2))
    assert quiet.rollouts[0].logprobs is None
    assert "log-prob" in quiet.notes[0]


# --- calls at once


@pytest.mark.nightly
def test_calls_at_once_share_batches_and_keep_their_results(model: CausalModel) -> None:
    requests = [
        SampleRequest(({"role": "user", "content": text},), n=2, max_tokens=9, temperature=0.9, seed=i)
        for i, text in enumerate(PROMPTS * 2)
    ]
    sampler = TransformersSampler(model, max_rows=5)
    alone = [[x.text for x in sampler.sample(request).rollouts] for request in requests]
    widths: list[int] = []
    hook = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    async def together() -> list[SampleResult]:
        threads = [asyncio.to_thread(sampler.sample, request) for request in requests[:3]]
        return list(await asyncio.gather(*threads, *(sampler.asample(request) for request in requests[3:])))

    try:
        results = asyncio.run(together())
    finally:
        hook.remove()
    assert [[x.text for x in result.rollouts] for result in results] == alone
    assert 2 < max(widths) <= 5
    assert sum(result.usage.prompt_tokens for result in results) == sum(
        len(model.prompt_ids(request.messages)) for request in requests
    )


@pytest.mark.nightly
def test_a_call_that_fails_fails_alone(model: CausalModel) -> None:
    batcher = Batcher(model, max_rows=8, name="b")
    good = Row(prompt(model, 0), Plan(0.0), 12, stop_ids=model.stop_ids)
    bad = Row((10**9,), Plan(0.0), 12)

    async def main() -> list[Any]:
        jobs = [batcher.arun([row]) for row in (good, bad, good)]
        return list(await asyncio.gather(*jobs, return_exceptions=True))

    first, wrong, last = asyncio.run(main())
    assert first.decoded[0].ids == last.decoded[0].ids == greedy(model, good.context, 12)
    assert isinstance(wrong, SamplerError)
    assert wrong.__cause__ is not None
    assert batcher.run([good]).decoded == first.decoded


@pytest.mark.nightly
def test_a_caller_that_goes_away_leaves_the_others(model: CausalModel) -> None:
    batcher = Batcher(model, max_rows=8, name="b")
    long = Row(prompt(model, 1), Plan(2.0), 4000, seed=1)
    good = Row(prompt(model, 0), Plan(0.0), 12, stop_ids=model.stop_ids)

    async def main() -> Any:
        task = asyncio.create_task(batcher.arun([long, long]))
        await asyncio.sleep(0.2)
        beside = asyncio.create_task(batcher.arun([good]))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await beside

    assert asyncio.run(main()).decoded[0].ids == greedy(model, good.context, 12)
    # Its rows are gone: else the 4000 tokens would still be decoded.
    widths: list[int] = []
    hook = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    batcher.run([good])
    hook.remove()
    assert set(widths) == {1}


@pytest.fixture
def short_of_memory(model: CausalModel) -> Iterator[list[int]]:
    """A model that runs out of memory beyond so many rows."""
    limit = [2]

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > limit[0]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.module.register_forward_pre_hook(refuse, with_kwargs=True)
    yield limit
    hook.remove()


@pytest.mark.nightly
def test_where_memory_is_short_fewer_rows_go_on_where_they_were(model: CausalModel, short_of_memory: list[int]) -> None:
    rows = [Row(prompt(model, i % 3), Plan(1.0), 6, seed=i) for i in range(5)]
    batcher = Batcher(model, max_rows=16, name="b")
    got = batcher.run(rows)
    short_of_memory[0] = 100
    assert [x.ids for x in got.decoded] == [x.ids for x in batcher.run(rows).decoded]
    short_of_memory[0] = 0
    with pytest.raises(SamplerError, match="memory is short") as caught:
        batcher.run(rows)
    assert caught.value.transient


def test_closing_ends_what_runs(model: CausalModel) -> None:
    sampler = TransformersSampler(model)
    outcome: list[object] = []

    def work() -> None:
        try:
            while True:  # a draw may end after three tokens
                sampler.sample(SampleRequest(PROMPT, max_tokens=4000, temperature=2.0))
        except SamplerError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.5)
    sampler.close()
    sampler.close()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(outcome[0], SamplerError)
    with pytest.raises(SamplerError, match="closed"):
        sampler.sample(SampleRequest(PROMPT))


# --- the steerer


def steer(steerer: TransformersSteerer, operator: str, rollout: Rollout, how: str = "sync", **options: Any) -> Any:
    request = SampleRequest(STEP.messages, **{"max_tokens": MOST, "seed": 5, **options})
    if how == "sync":
        return steerer.steer(STEP, operator, rollout, request)

    async def main() -> SampleResult:
        return await steerer.asteer(STEP, operator, rollout, request)

    return asyncio.run(main())


def site_of(model: CausalModel, other: CausalModel, rollout: Rollout) -> tuple[tuple[int, int], int, bool]:
    """The junction, the peak and whether the path term dominates, from tables of the literal kind."""
    from rfx_agent.samplers.transformers.prefill import prefill

    pair = [(rollout.prompt_ids or (), taken(rollout))]
    (s,), (a,) = (prefill(m, pair)[0] for m in (model, other))
    features = token_features(s, a, temperature=0.6)  # type: ignore[arg-type]
    found = rollout_features(features)
    assert found is not None
    assert found.junction is not None
    assert found.peak is not None
    t = found.peak
    return found.junction, t, max(0, features.delta_path[t]) >= max(0, features.coverage_gap[t])


@both
@pytest.mark.parametrize("operator", OPERATORS)
def test_alpha_1_is_the_unsteered_decode(
    model: CausalModel, other: CausalModel, failed: Rollout, operator: str, how: str
) -> None:
    result = steer(TransformersSteerer(model, other, alpha=1.0), operator, failed, how, temperature=0.0)
    (rollout,) = result.rollouts
    assert failed.text.startswith(rollout.text[: rollout.start])
    context = rollout.prompt_ids
    assert context is not None
    assert context[: len(failed.prompt_ids or ())] == failed.prompt_ids
    kept = len(context) - len(failed.prompt_ids or ())
    assert context[len(failed.prompt_ids or ()) :] == taken(failed)[:kept]
    assert taken(rollout) == greedy(model, context, MOST - kept)
    assert rollout.remedy == operator
    assert rollout.temperature == 0.0


def test_alpha_0_dense_is_the_ancestors_own_decode(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    result = steer(TransformersSteerer(model, other, alpha=0.0), "dense_steer", failed, temperature=0.0)
    own = greedy(other, model.prompt_ids(STEP.messages), MOST)
    assert taken(result.rollouts[0]) == own
    assert own != greedy(model, model.prompt_ids(STEP.messages), MOST)


def test_sparse_changes_one_position(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    _, peak, on_path = site_of(model, other, failed)
    result = steer(TransformersSteerer(model, other, alpha=0.0), "sparse_steer", failed, temperature=0.0)
    (rollout,) = result.rollouts
    before = "".join((failed.tokens or ())[:peak])
    assert (rollout.start, rollout.junction, rollout.peak) == (len(before),) * 3
    assert rollout.text[: len(before)] == before
    context = (*(failed.prompt_ids or ()), *taken(failed)[:peak])
    assert rollout.prompt_ids == context
    # The one position is the ancestor's choice, and everything behind it the specialist's.
    first, *rest = taken(rollout)
    assert first == greedy(other, context, 1)[0]
    assert first != greedy(model, context, 1)[0]
    assert tuple(rest) == greedy(model, (*context, first), MOST - peak - 1)
    assert f"mixed on the {'path' if on_path else 'coverage'}" in result.notes[0]


def test_local_temp_lifts_the_window_only(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    (start, stop), _, _ = site_of(model, other, failed)
    steerer = TransformersSteerer(model, other, lifted_temperature=1.7, suffix="greedy")
    result = steer(steerer, "local_temp", failed, n=2)
    context = (*(failed.prompt_ids or ()), *taken(failed)[:start])
    for i, rollout in enumerate(result.rollouts):
        assert rollout.prompt_ids == context
        assert rollout.text.startswith("".join((failed.tokens or ())[:start]))
        plan = Plan(0.0, head=stop - start, head_temperature=1.7)
        row = Row(context, plan, MOST - start, seed=5 + i, stop_ids=model.stop_ids)
        assert taken(rollout) == literal(model, None, row)
        assert rollout.junction == rollout.start
        assert rollout.peak is None
    assert len({rollout.text for rollout in result.rollouts}) == 2


def test_dense_mixes_everywhere_at_the_requests_temperature(
    model: CausalModel, other: CausalModel, failed: Rollout
) -> None:
    _, _, on_path = site_of(model, other, failed)
    steerer = TransformersSteerer(model, other, suffix="greedy")
    result = steer(steerer, "dense_steer", failed, max_tokens=10, temperature=0.6)
    plan = Plan(0.0, head=None, head_temperature=0.6, mixing="path" if on_path else "coverage", alpha=0.7)
    row = Row(model.prompt_ids(STEP.messages), plan, 10, seed=5)
    assert taken(result.rollouts[0]) == literal(model, other, row)


def test_the_control_intervenes_anywhere(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    steerer = TransformersSteerer(model, other)
    result = steer(steerer, "sparse_steer_random", failed, n=6)
    starts = [rollout.start for rollout in result.rollouts]
    offsets = {len("".join((failed.tokens or ())[:t])) for t in range(len(failed.tokens or ()))}
    assert len(set(starts)) > 2
    assert set(starts) <= offsets
    for rollout in result.rollouts:
        assert failed.text.startswith(rollout.text[: rollout.start])
    again = steer(steerer, "sparse_steer_random", failed, n=2, seed=6)
    assert [rollout.text for rollout in again.rollouts] == [rollout.text for rollout in result.rollouts[1:3]]


@both
def test_a_rollout_from_a_checkpoint_steers_alike(
    model: CausalModel, other: CausalModel, failed: Rollout, how: str
) -> None:
    steerer = TransformersSteerer(model, other)
    one, two = (steer(steerer, "sparse_steer", x, how).rollouts[0] for x in (failed, failed.compact()))
    assert one.text == two.text
    assert one.prompt_ids == two.prompt_ids


def test_usage_counts_what_was_read(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    steerer = TransformersSteerer(model, other)
    result = steer(steerer, "sparse_steer", failed, n=3)
    _, peak, _ = site_of(model, other, failed)
    asked = len(failed.prompt_ids or ())
    junction = 2 * (asked + len(taken(failed)) - 1)  # nothing follows the last token, so nothing reads it
    decode = 2 * (asked + peak)
    assert result.usage.prompt_tokens == junction + decode
    assert result.usage.completion_tokens == sum(len(x.tokens) for x in result.rollouts)
    assert [x.usage.prompt_tokens > 0 for x in result.rollouts] == [True, False, False]
    assert (
        f"{junction + decode} prompt tokens were read, {(junction + decode) // 2} of them by noisy" in result.notes[-1]
    )
    # The junction is remembered, and local_temp needs no ancestor to decode.
    (start, _), _, _ = site_of(model, other, failed)
    assert steer(steerer, "local_temp", failed).usage.prompt_tokens == asked + start


def test_at_least_one_token_and_no_more_than_asked(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    steerer = TransformersSteerer(model, other)
    _, peak, _ = site_of(model, other, failed)
    for most, new in ((1, 1), (peak, 1), (peak + 3, 3)):
        (rollout,) = steer(steerer, "sparse_steer", failed, max_tokens=most).rollouts
        assert len(rollout.tokens) == new
        assert rollout.finish_reason == "length"


def test_models_that_do_not_differ_have_no_junction(model: CausalModel, failed: Rollout) -> None:
    steerer = TransformersSteerer(model, model)
    for operator in OPERATORS[:3]:
        with pytest.raises(SamplerError, match="J is 0 everywhere"):
            steer(steerer, operator, failed)
    result = steer(steerer, "dense_steer", failed, temperature=0.0)
    assert taken(result.rollouts[0]) == greedy(model, model.prompt_ids(STEP.messages), MOST)
    assert any("path is mixed" in note for note in result.notes)
    empty = steer(steerer, "dense_steer", Rollout(""), max_tokens=2)
    assert any("empty" in note for note in empty.notes)


def test_what_cannot_be_steered(model: CausalModel, other: CausalModel, failed: Rollout) -> None:
    steerer = TransformersSteerer(model, other)
    assert isinstance(steerer, Steerer)
    with pytest.raises(SamplerError, match="'retry'; give one of local_temp"):
        steer(steerer, "retry", failed)
    with pytest.raises(SamplerError, match="prefix"):
        steer(steerer, "sparse_steer", failed, prefix="a")
    with pytest.raises(SamplerError, match="max_tokens"):
        steer(steerer, "sparse_steer", failed, max_tokens=0)
    with pytest.raises(SamplerError, match="tokens spell"):
        steer(steerer, "sparse_steer", replace(failed, text="Something else."))
    steerer.close()
    with pytest.raises(SamplerError, match="closed"):
        steer(steerer, "dense_steer", failed)
    for options in ({"alpha": 1.1}, {"lifted_temperature": 0.0}, {"suffix": "x"}, {"coverage_k": 0}, {"window": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            TransformersSteerer(model, other, **options)  # type: ignore[arg-type]


def test_tokenizers_are_compared_before_anything(
    model: CausalModel, other: CausalModel, failed: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(specialist: Any, ancestor: Any) -> None:
        raise TokenizerMismatch("token 5 differs")

    monkeypatch.setattr(steerer, "check_tokenizers", refuse)
    steering = TransformersSteerer(model, other)
    with pytest.raises(TokenizerMismatch):
        steering.start()
    with pytest.raises(SamplerError, match="token 5 differs") as caught:
        steer(steering, "dense_steer", failed)
    assert isinstance(caught.value.__cause__, TokenizerMismatch)


def test_text_before_an_intervention_is_kept_inside_any_character(model: CausalModel) -> None:
    text = "Größe: 🙂 ≈ 中文 🙂🙂, naïve."
    tokens = Tokens.of(model, STEP, Rollout("Well. " + text, start=6, finish_reason="stop"))
    assert tokens.ids[-1] == model.end_id
    assert len(tokens.ids) > len(text) // 2
    for t in range(len(tokens.ids)):
        kept = tokens.offset(t)
        assert ("Well. " + text)[:kept] + "".join(tokens.follow(model, t, tokens.ids[t:])) == "Well. " + text
