"""``ChatModelSampler`` on the real classes of five providers, against loopback doubles of their wire formats."""

import asyncio
from typing import Any

import pytest

from rfx_agent import (
    ChatModelSampler,
    ConfigError,
    ExactVerifier,
    FunctionVerifier,
    ProgramTool,
    Recovery,
    RetryBudget,
    SampleRequest,
    SampleResult,
    Step,
)
from rfx_agent.errors import SamplerError
from rfx_agent.samplers.chat.parameters import PARAMETERS
from tests.chat_servers import ANSWER, KEY, PROMPT, PROVIDERS, THOUGHT, Server, of

STEP = Step.of("What is 6 times 7?")
IS_42 = FunctionVerifier(lambda text: "42" in text)
every = pytest.mark.parametrize("name", PROVIDERS)
both = pytest.mark.parametrize("way", ["sync", "async"])
CAPS = {"ChatOllama": "num_predict", "ChatGoogleGenerativeAI": "maxOutputTokens", "ChatBedrockConverse": "maxTokens"}
CAPS |= {"ChatOpenAI": "max_completion_tokens", "ChatAnthropic": "max_tokens"}
CUTS = {"ChatOpenAI": "length", "ChatAnthropic": "max_tokens", "ChatGoogleGenerativeAI": "MAX_TOKENS"}
CUTS |= {"ChatOllama": "length", "ChatBedrockConverse": "max_tokens"}
REFUSALS = {"ChatOpenAI": "content_filter", "ChatAnthropic": "refusal", "ChatGoogleGenerativeAI": "SAFETY"}
REFUSALS |= {"ChatBedrockConverse": "guardrail_intervened"}


def draws(way: str, sampler: ChatModelSampler, times: int, **more: Any) -> list[SampleResult]:
    """One after the other, on one event loop."""
    request = SampleRequest(STEP.messages, **({"temperature": 0.25, "max_tokens": 77} | more))

    async def each() -> list[SampleResult]:
        return [await sampler.asample(request) for _ in range(times)]

    return [sampler.sample(request) for _ in range(times)] if way == "sync" else asyncio.run(each())


def draw(way: str, sampler: ChatModelSampler, **more: Any) -> SampleResult:
    return draws(way, sampler, 1, **more)[0]


@both
@every
def test_parameters_arrive_under_the_providers_own_names_and_tokens_are_read(name: str, way: str) -> None:
    with Server() as server:
        result = draw(way, ChatModelSampler(of(name, server)))
    (body,) = server.bodies
    assert (body["temperature"], body[CAPS[name]]) == (0.25, 77)
    assert result.rollouts[0].text == "42"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.calls) == (PROMPT, ANSWER, 1)


@both
@every
def test_a_refused_temperature_is_learned_once(name: str, way: str) -> None:
    with Server(refuses=["temperature"]) as server:
        sampler = ChatModelSampler(of(name, server))
        first, second = draws(way, sampler, 2)
    assert server.temperatures == [0.25, None, None]
    assert [body[CAPS[name]] for body in server.bodies] == [77] * 3
    assert (first.usage.calls, second.usage.calls) == (2, 1)
    assert first.rollouts[0].temperature is None
    for result in (first, second):
        assert any(note.startswith("drawn at the model's own temperature (") for note in result.notes)
    assert not sampler.takes_temperature
    assert sampler.takes_max_tokens


@both
@every
def test_what_a_class_or_its_client_does_not_take_is_left_out(name: str, way: str) -> None:
    with Server() as server:
        sampler = ChatModelSampler(of(name, server), arguments=PARAMETERS)
        for result in draws(way, sampler, 2, seed=3):
            assert (result.rollouts[0].text, result.usage.calls) == ("42", 1)
    assert [(body["temperature"], body[CAPS[name]]) for body in server.bodies] == [(0.25, 77)] * 2
    takes_seed = name not in ("ChatAnthropic", "ChatBedrockConverse")
    assert [body.get("seed") for body in server.bodies] == [3 if takes_seed else None] * 2


@every
def test_an_error_that_is_no_refusal_is_raised_and_teaches_nothing(name: str) -> None:
    with Server(refuses=["temperature"], said="'{}' must be at most 1") as server:
        sampler = ChatModelSampler(of(name, server))
        with pytest.raises(SamplerError, match="must be at most 1") as raised:
            draw("sync", sampler)
    assert (len(server.bodies), raised.value.calls, sampler.takes_temperature) == (1, 1, True)


@pytest.mark.parametrize("name", [x for x in PROVIDERS if x != "ChatOllama"])  # which is given none
def test_a_key_that_the_server_echoes_is_in_no_message(name: str) -> None:
    with Server(refuses=["temperature"], said=f"'{{}}' must be at most 1, {KEY}") as server:
        sampler = ChatModelSampler(of(name, server))
        with pytest.raises(SamplerError) as raised:
            draw("sync", sampler)
    assert KEY not in f"{raised.value} {sampler!r}"


@pytest.mark.parametrize(("name", "reason", "kind"), [
    *((name, reason, "cut") for name, reason in CUTS.items()),
    *((name, reason, "refused") for name, reason in REFUSALS.items()),
])  # fmt: skip
def test_how_an_answer_ended_is_read(name: str, reason: str, kind: str) -> None:
    with Server("41", stop=reason) as server:
        case = Recovery(ChatModelSampler(of(name, server)), IS_42, budget=RetryBudget(samples=2)).run(STEP)
    assert {x.kind for x in case.rollouts} == {kind}


@every
def test_an_agents_tool_route(name: str) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    from rfx_agent import RecoverabilityMiddleware

    with Server("41", "41", "41", "```python\nanswer = 6 * 7\n```") as server:
        recovery = RecoverabilityMiddleware(verifier=ExactVerifier("42"), tool=ProgramTool(), extra_samples=2)
        agent = create_agent(of(name, server), [], middleware=[recovery])
        message = agent.invoke({"messages": [("user", "What is 6 times 7?")]})["messages"][-1]
    assert (message.text, message.response_metadata["rfx"]["by"]) == ("42", "tool")


@both
@pytest.mark.parametrize("said", [None, False])
def test_an_agents_model_that_refuses_temperature(said: bool | None, way: str) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    from rfx_agent import RecoverabilityMiddleware

    with Server("41", "41", "41", "```python\nanswer = 6 * 7\n```", refuses=["temperature"]) as server:
        recovery = RecoverabilityMiddleware(
            verifier=ExactVerifier("42"), tool=ProgramTool(), temperature=0.4, takes_temperature=said, extra_samples=2
        )
        agent = create_agent(of("ChatOpenAI", server), [], middleware=[recovery])
        asked: Any = {"messages": [("user", "What is 6 times 7?")]}
        state = agent.invoke(asked) if way == "sync" else asyncio.run(agent.ainvoke(asked))
    assert state["messages"][-1].text == "42"
    sent = [x for x in server.temperatures if x is not None]
    # Draws that go out at once meet the refusal each, and nothing after them.
    assert len(sent) <= (0 if said is False else 2)
    assert server.temperatures[-1] is None


def test_a_model_whose_profile_takes_no_temperature_is_never_sent_one() -> None:
    with Server() as server:
        result = draw("sync", ChatModelSampler(of("ChatOpenAI", server, model="o3")))
    assert server.temperatures == [None]
    assert (result.rollouts[0].text, result.rollouts[0].temperature) == ("42", None)
    assert "drawn at the model's own temperature (the profile of o3)" in result.notes


def test_every_refused_parameter_is_left_out() -> None:
    with Server(refuses=["seed", "logprobs", "temperature"]) as server:
        arguments = ("temperature", "max_tokens", "seed", "logprobs", "top_logprobs")
        sampler = ChatModelSampler(of("ChatOpenAI", server), arguments=arguments)
        result = draw("sync", sampler, seed=3)
        draw("sync", sampler, seed=3)
    assert len(server.bodies) == 5
    assert not {"seed", "logprobs", "top_logprobs", "temperature"} & set(server.bodies[-1])
    assert result.usage.calls == 4


def test_answers_of_the_responses_api_and_their_reasoning() -> None:
    with Server("Answer: 42") as server:
        result = draw("sync", ChatModelSampler(of("ChatOpenAI", server, use_responses_api=True)))
    assert result.rollouts[0].text == "Answer: 42"
    assert result.usage.completion_tokens == ANSWER + THOUGHT


def test_extended_thinking_of_anthropic() -> None:
    thought = {"type": "thinking", "thinking": "Answer: 41?", "signature": "s"}
    content = [thought, {"type": "text", "text": "I checked that."}, {"type": "text", "text": "Answer: 42"}]
    said = "`{}` may only be set to 1 when thinking is enabled"
    with Server(content=content, refuses=["temperature"], said=said) as server:
        model = of("ChatAnthropic", server, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=3000)
        (rollout,) = draw("sync", ChatModelSampler(model)).rollouts
    assert rollout.text == "I checked that.\nAnswer: 42"
    assert ExactVerifier("42").verify(STEP, rollout).passed


def test_a_cap_below_what_anthropic_may_think_is_left_to_the_model() -> None:
    with Server() as server:
        taken = server.answer

        def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
            said = "`max_tokens` must be greater than `thinking.budget_tokens`."
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
            return (400, error) if body["max_tokens"] <= 1024 else taken(path, body)

        server.answer = answer  # type: ignore[method-assign]
        model = of("ChatAnthropic", server, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=3000)
        sampler = ChatModelSampler(model, arguments=("max_tokens",))
        assert draw("sync", sampler).rollouts[0].text == "42"
    assert server.bodies[-1]["max_tokens"] == 3000
    assert not sampler.takes_max_tokens


def test_ollamas_table() -> None:
    top = [{"token": "42", "logprob": -0.1}, {"token": "41", "logprob": -2.5}]
    with Server(logprobs=[{"token": "42", "logprob": -0.1, "top_logprobs": top}]) as server:
        sampler = ChatModelSampler(of("ChatOllama", server), arguments=("logprobs", "top_logprobs"))
        (rollout,) = draw("sync", sampler).rollouts
    assert (rollout.text, rollout.tokens, rollout.logprobs is not None) == ("42", ("42",), True)


@every
def test_wrapped_models(name: str) -> None:
    with Server() as server:
        model = of(name, server)
        for wrapped in (model.with_retry(), model.bind(stop=["x"]), model.with_fallbacks([model])):
            assert draw("sync", ChatModelSampler(wrapped)).rollouts[0].text == "42"
    assert [(body["temperature"], body[CAPS[name]]) for body in server.bodies] == [(0.25, 77)] * 3


def test_a_name_as_init_chat_model_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("langchain_openai")
    with Server() as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        sampler = ChatModelSampler("openai:gpt-4o-mini")
        assert (sampler.name, draw("sync", sampler).rollouts[0].text) == ("gpt-4o-mini", "42")


def test_a_configurable_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("langchain_openai")
    from langchain.chat_models import init_chat_model
    from langchain_core.runnables.config import set_config_context

    with Server(refuses=["temperature"]) as server:
        given = {"base_url": f"{server.url}/v1", "api_key": KEY}
        default = init_chat_model("openai:gpt-4o-mini", configurable_fields="any", **given)
        sampler = ChatModelSampler(default)
        draw("sync", sampler)
        assert draw("sync", sampler).rollouts[0].text == "42"
        assert server.temperatures == [0.25, None, None]
        bare = ChatModelSampler(init_chat_model(configurable_fields=["model", "model_provider"], **given))
        with pytest.raises(SamplerError, match="the model is configurable and no config says which"):
            draw("sync", bare)
        with set_config_context({"configurable": {"model": "gpt-4o-mini"}}) as context:
            assert context.run(draw, "sync", bare).rollouts[0].text == "42"


def test_a_name_that_makes_no_model() -> None:
    pytest.importorskip("langchain")
    with pytest.raises(ConfigError, match="init_chat_model makes none; give"):
        ChatModelSampler("no-such-model-of-anybody")
    with pytest.raises(ConfigError, match="langchain-mistralai"):
        ChatModelSampler("mistralai:x")
