"""A LangChain chat model as a sampler: what goes to it, and what becomes of what it answers."""

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from rfx_agent import ChatModelSampler, ConfigError, SampleRequest, SampleResult, Step
from rfx_agent.errors import SamplerError

STEP = Step.of("What is 6 x 7?")
TOP = [{"token": "4", "logprob": -0.1}, {"token": "5", "logprob": -2.4}]


class Recorder(BaseChatModel):
    """Answers with its seed, remembers its arguments, and fails or gives log-probabilities where it is told to."""

    calls: list[dict[str, Any]] = Field(default_factory=list)
    failing: tuple[int, ...] = ()
    tables: tuple[int, ...] = ()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls.append(kwargs | {"tags": run_manager.tags if run_manager else []})
        seed = kwargs.get("seed", 0)
        if seed in self.failing:
            raise ConnectionError("dropped")
        content = [{"token": "4", "logprob": -0.1, "top_logprobs": TOP}] if seed in self.tables else []
        message = AIMessage(f"{seed}", response_metadata={"logprobs": {"content": content}})
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self) -> str:
        return "recorder"


def draw(way: str, sampler: ChatModelSampler, request: SampleRequest) -> SampleResult:
    return sampler.sample(request) if way == "sync" else asyncio.run(sampler.asample(request))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_every_draw_has_a_seed_and_a_tag_of_its_own(way: str) -> None:
    model = Recorder(calls=[])
    sampler = ChatModelSampler(model, arguments=("temperature", "max_tokens", "seed"))
    result = draw(way, sampler, SampleRequest(STEP.messages, 3, 0.7, 99, seed=10))
    assert [x.text for x in result.rollouts] == ["10", "11", "12"]
    sent = sorted(model.calls, key=lambda call: call["seed"])
    assert [(c["temperature"], c["max_tokens"], c["seed"]) for c in sent] == [(0.7, 99, 10 + i) for i in range(3)]
    assert [c["tags"] for c in sent] == [[f"retry:attempt:{i + 1}"] for i in range(3)]
    assert result.usage.calls == 3


@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_failed_is_noted_and_the_rest_is_kept(way: str) -> None:
    sampler = ChatModelSampler(Recorder(calls=[], failing=(1,), tables=(0,)), arguments=("seed", "logprobs"))
    result = draw(way, sampler, SampleRequest(STEP.messages, 3, seed=0))
    assert [x.text for x in result.rollouts] == ["0", "2"]
    assert [x.logprobs is not None for x in result.rollouts] == [True, False]
    assert result.notes == (
        "Recorder: ConnectionError: dropped",
        "Recorder gave no log-probabilities that can be used for 1 of 2 draws",
    )
    assert result.usage.calls == 3
    with pytest.raises(SamplerError, match="dropped"):
        draw(way, sampler, SampleRequest(STEP.messages, 1, seed=1))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        ChatModelSampler(Recorder(calls=[]), arguments=("top_k",))
    with pytest.raises(ConfigError, match="model is of type int; give a LangChain chat model"):
        ChatModelSampler(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model is the class Recorder; give a LangChain chat model"):
        ChatModelSampler(Recorder)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prefix"):
        ChatModelSampler(Recorder(calls=[])).sample(SampleRequest(STEP.messages, prefix="4"))


def test_whether_it_takes_a_temperature_is_said_and_noted_in_the_draws() -> None:
    plain, seeded = ChatModelSampler(Recorder(calls=[])), ChatModelSampler(Recorder(calls=[]), arguments=("seed",))
    assert (plain.takes_temperature, seeded.takes_temperature) == (True, False)
    request = SampleRequest(STEP.messages, temperature=0.7)
    assert [s.sample(request).rollouts[0].temperature for s in (plain, seeded)] == [0.7, None]
    assert repr(plain) == "ChatModelSampler('Recorder')"
