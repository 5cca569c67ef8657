"""A LangChain chat model as a sampler: what goes to it, and what becomes of what it answers."""

import asyncio
import sys
import time
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.runnables.config import set_config_context
from pydantic import Field, SecretStr

from rfx_agent import (
    ChatModelSampler,
    ConfigError,
    FunctionVerifier,
    MemoryStore,
    Recovery,
    RetryBudget,
    SampleRequest,
    SampleResult,
    SharedBudget,
    Step,
    Window,
)
from rfx_agent.errors import SamplerError
from rfx_agent.samplers.chat import ended, rollout_of

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
        content = [{"token": f"{seed}", "logprob": -0.1, "top_logprobs": TOP}] if seed in self.tables else []
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
        "an answer was lost on its way: it is charged as if it had used its whole cap",
        "Recorder gave no log-probabilities that can be used for 1 of 2 draws",
    )
    assert result.usage.calls == 3
    assert result.usage.completion_tokens >= SampleRequest(STEP.messages).max_tokens  # of the one that was lost
    with pytest.raises(SamplerError, match="dropped") as raised:
        draw(way, sampler, SampleRequest(STEP.messages, 1, seed=1))
    assert raised.value.lost == 1


class Aside(Recorder):
    """Fails before anything is sent, or after, as providers' libraries say it."""

    fault: str = ""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        base = ConnectionError if self.fault != "ValueError" else ValueError
        raise type(self.fault, (base,), {})("no")


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        ("ReadTimeoutError", 1),
        ("ServerDisconnectedError", 1),
        ("EndpointConnectionError", 0),
        ("ConnectionRefusedError", 0),
        ("ValueError", 1),  # an answer that LangChain cannot read raises one too
    ],
)
def test_a_connection_that_broke_is_charged_unless_none_was_made(fault: str, lost: int) -> None:
    with pytest.raises(SamplerError) as raised:
        ChatModelSampler(Aside(calls=[], fault=fault)).sample(SampleRequest(STEP.messages))
    assert raised.value.lost == lost


def test_a_long_text_is_read_at_once() -> None:
    begun = time.process_time()
    assert ended(AIMessage("a" * 2_000_000)) is None
    assert time.process_time() - begun < 0.05


def test_a_cap_that_was_used_up_for_nothing_cut_the_answer() -> None:
    told = {"input_tokens": 7, "output_tokens": 20, "total_tokens": 27}
    message = AIMessage("", usage_metadata=told, response_metadata={"finish_reason": "stop"})
    assert rollout_of(message, cap=20).finish_reason == "length"
    assert rollout_of(message, cap=21).finish_reason == "stop"


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


class Client(Recorder):
    """Its client takes no ``taken`` by argument: what the fields say counts."""

    refuses: tuple[str, ...] = ("temperature", "num_predict", "max_tokens", "seed")
    said: str = "chat() got an unexpected keyword argument '{}'"
    error: type[Exception] = TypeError

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        for name in self.refuses:
            if name in kwargs:
                self.calls.append({"refused": name})
                raise self.error(self.said.format(name))
        return super()._generate(messages, stop, run_manager, **kwargs, fields=self.fields())

    def fields(self) -> dict[str, Any]:
        return {}


class Fields(Client):
    temperature: float | None = None
    num_predict: int | None = None

    def fields(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "num_predict": self.num_predict}


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_class_whose_calls_take_no_parameters_has_them_set_on_a_copy(way: str) -> None:
    model = Fields(calls=[])
    sampler = ChatModelSampler(model)
    for temperature in (0.2, 0.9):
        result = draw(way, sampler, SampleRequest(STEP.messages, 3, temperature, 99))
        assert [(x.temperature, x.text) for x in result.rollouts] == [(temperature, "0")] * 3
        assert result.usage.calls == 3  # nothing was sent of the calls that the client did not take
    sent = [call["fields"] for call in model.calls if "fields" in call]
    assert sent == [{"temperature": 0.2, "num_predict": 99}] * 3 + [{"temperature": 0.9, "num_predict": 99}] * 3
    assert model.temperature is None
    assert sampler.takes_temperature
    assert sampler.takes_max_tokens


@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_a_class_has_no_field_for_is_left_out_and_said(way: str) -> None:
    model = Client(calls=[])
    sampler = ChatModelSampler(model, arguments=("temperature", "max_tokens", "seed"))
    first, second = (draw(way, sampler, SampleRequest(STEP.messages, 1, 0.2, 99, seed=5)) for _ in range(2))
    assert [x.get("refused") for x in model.calls] == ["temperature", "max_tokens", "seed", None, None]
    assert (first.rollouts[0].temperature, second.usage.calls) == (None, 1)
    assert [note.partition(" (")[0] for note in second.notes] == [
        "drawn at the model's own temperature",
        "drawn under the model's own max_tokens",
        "drawn without a seed",
        "Client gave no log-probabilities",
    ]
    assert not sampler.takes_temperature
    assert not sampler.takes_max_tokens


def test_an_error_that_names_no_parameter_is_no_refusal() -> None:
    model = Client(calls=[], said="'{}' is too hot", error=ValueError)
    with pytest.raises(SamplerError, match="is too hot"):
        ChatModelSampler(model).sample(SampleRequest(STEP.messages))
    assert len(model.calls) == 1


def test_models_as_people_have_them() -> None:
    def sent(given: Any) -> list[Any]:
        model.calls.clear()
        result = ChatModelSampler(given, arguments=("temperature", "seed")).sample(
            SampleRequest(STEP.messages, temperature=0.2, seed=1)
        )
        assert [x.text for x in result.rollouts] == ["1"]
        return [{x: call[x] for x in call if x not in ("seed", "tags")} for call in model.calls]

    model, other = Recorder(calls=[]), Recorder(calls=[], failing=(1,))
    alternatives = other.configurable_alternatives(ConfigurableField(id="which"), default_key="other", mine=model)
    assert sent(model.with_retry()) == [{"temperature": 0.2}]
    assert sent(model.bind(user="u", temperature=0.9)) == [{"user": "u", "temperature": 0.2}]
    assert sent(model.bind(user="u").with_retry()) == [{"user": "u", "temperature": 0.2}]
    assert sent(model.with_config(tags=["mine"])) == [{"temperature": 0.2}]
    assert "mine" in model.calls[0]["tags"]
    assert sent(other.with_fallbacks([model])) == [{"temperature": 0.2}]
    assert sent(model.configurable_fields(name=ConfigurableField(id="n"))) == [{"temperature": 0.2}]
    assert sent(alternatives.with_config(configurable={"which": "mine"})) == [{"temperature": 0.2}]
    with set_config_context({"configurable": {"which": "mine"}}) as context:
        assert context.run(sent, alternatives) == [{"temperature": 0.2}]


def test_each_of_several_models_gets_its_parameters_as_it_takes_them() -> None:
    first, second = Recorder(calls=[], failing=(0,)), Fields(calls=[])
    sampler = ChatModelSampler(first.with_fallbacks([second]))
    result = sampler.sample(SampleRequest(STEP.messages, 1, 0.2, 99))
    assert (first.calls[0]["temperature"], first.calls[0]["max_tokens"]) == (0.2, 99)
    assert second.calls[-1]["fields"] == {"temperature": 0.2, "num_predict": 99}
    assert result.usage.calls == 2
    assert sampler.max_calls == 2


def test_a_retry_counts_every_call() -> None:
    model = Recorder(calls=[], failing=(0,))
    sampler = ChatModelSampler(model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False))
    assert sampler.max_calls == 3
    with pytest.raises(SamplerError) as raised:
        sampler.sample(SampleRequest(STEP.messages))
    assert (len(model.calls), raised.value.calls) == (3, 3)


@pytest.mark.parametrize(
    "chain",
    [
        Recorder(calls=[]) | StrOutputParser(),
        ChatPromptTemplate.from_template("{q}") | Recorder(calls=[]),
        (Recorder(calls=[]) | StrOutputParser()).with_retry(),
        RunnableLambda(lambda x: x),
    ],
)
def test_a_chain_is_refused_and_what_takes_it_is_named(chain: Any) -> None:
    with pytest.raises(ConfigError, match=r"is a Runnable\w+, and no chat model; .*with_recovery\(chain, verifier"):
        ChatModelSampler(chain)


def test_a_name_without_langchain_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(ConfigError, match=r"pip install 'rfx-agent\[langchain\]'"):
        ChatModelSampler("openai:gpt-4o-mini")


class Keyed(Recorder):
    key: SecretStr = SecretStr("hush-hush-key")

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise ConnectionError(f"refused for {self.key.get_secret_value()} at sk-abcdefghijkl")


def test_keys_are_in_no_message() -> None:
    for given in (Keyed(calls=[]), Keyed(calls=[]).bind(key="hush-hush-key").with_retry(stop_after_attempt=1)):
        sampler = ChatModelSampler(given)
        with pytest.raises(SamplerError, match=r"refused for \[key\] at \[key\]") as raised:
            sampler.sample(SampleRequest(STEP.messages))
        assert "hush" not in f"{raised.value}{sampler!r}"
    with pytest.raises(ConfigError) as refused:
        ChatModelSampler(Keyed(calls=[]).bind(key="hush-hush-key") | StrOutputParser())
    assert "hush" not in str(refused.value)


def test_draws_that_nobody_counted_empty_a_window() -> None:
    class Long(Recorder):
        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            self.calls.append(kwargs)
            return ChatResult(generations=[ChatGeneration(message=AIMessage("word " * 300))])

    model = Long(calls=[])
    shared = SharedBudget(
        store=MemoryStore(), limits=(Window("tenant", "tokens", 2_000, per="day"),), scopes={"tenant": "t"}
    )
    budget = RetryBudget(samples=60, attempts=60, tokens=None, calls=None)
    verifier = FunctionVerifier(lambda text: "42" in text)
    Recovery(ChatModelSampler(model), verifier, shared=shared, budget=budget).run(STEP)
    assert 2 <= len(model.calls) <= 5
