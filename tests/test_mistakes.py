"""Mistakes of construction and of a call are a ConfigError that says what to give; what is natural works."""

import asyncio
import functools
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel

import rfx_agent
from rfx_agent import (
    ChatModelSampler,
    ConfigError,
    Delegate,
    Escalation,
    ExactVerifier,
    FunctionVerifier,
    InFlight,
    JsonSchemaVerifier,
    JudgeVerifier,
    MathVerifier,
    MemoryStore,
    OpenAISampler,
    Price,
    ProgramTool,
    PydanticVerifier,
    Ratio,
    Recovery,
    RegexVerifier,
    RetryBudget,
    Revise,
    Rollout,
    SharedBudget,
    Step,
    TestsVerifier,
    Verdict,
    Window,
    with_recovery,
)
from rfx_agent.accepted import sampler_of, tool_of, verifier_of
from rfx_agent.errors import VerifierError
from rfx_agent.remedies import Custom, Tool
from rfx_agent.samplers import CircuitBreaker
from rfx_agent.testing import ScriptedSampler, ScriptedVerifier
from rfx_agent.verifiers import AgreementVerifier, AllOf, AnyOf, Cascade

QUESTION = "What is 6 times 7?"


class Shape(BaseModel):
    total: int


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


async def hook(event: Any) -> None: ...


def model(text: str = "42") -> FakeListChatModel:
    return FakeListChatModel(responses=[text])


def recovery(**options: Any) -> Recovery:
    return Recovery(**{"sampler": ScriptedSampler([], last="42"), "verifier": ExactVerifier("42"), **options})


def undocumented(text):
    return text


MISTAKES: list[tuple[str, Callable[[], Any], str]] = [
    # the step
    ("Step.of(None)", lambda: Step.of(None), r"prompt is None; give a text, or a list of chat messages"),
    ("Step.of(42)", lambda: Step.of(42), r"prompt is 42; give a text"),
    ("Step.of(b'x')", lambda: Step.of(b"x"), r"prompt is b'x'; give a text"),
    ("Step.of([])", lambda: Step.of([]), r"messages is empty; give at least one"),
    ("Step.of([1])", lambda: Step.of([1]), r"messages\[0\] is 1; give a mapping with 'role'"),
    ("one message for a list", lambda: Step.of({"role": "user", "content": "q"}), r"give a text, or a list of chat"),
    ("Step('text')", lambda: Step("text"), r"messages is 'text'; give Step\.of\(text\)"),
    ("a number as id", lambda: Step.of("q", id=7), r"step: id is 7; give a text"),
    ("a list as system", lambda: Step.of("q", system=["be brief"]), r"system is \['be brief'\]; give a text"),
    # the call
    (
        "a number as content",
        lambda: recovery().run([{"role": "user", "content": 4}]),
        r"messages\[0\]\['content'\] is 4; give a text or a list of content blocks",
    ),
    (
        "a surrogate",
        lambda: recovery().run("a \ud83d b"),
        r"messages\[0\]\['content'\] has a lone surrogate.*character 2.*replace",
    ),
    (
        "a surrogate in a block",
        lambda: recovery().run([{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}], "41"),
        r"\['content'\]\[0\]\['text'\] has a lone surrogate",
    ),
    ("run(None)", lambda: recovery().run(None), r"prompt is None; give a text"),
    ("run(42)", lambda: recovery().run(42), r"prompt is 42; give a text"),
    ("arun(42)", lambda: asyncio.run(recovery().arun(42)), r"prompt is 42; give a text"),
    (
        "candidate=42",
        lambda: recovery().run(QUESTION, 42),
        r"candidate is 42; give the answer's text, a Rollout, or an AI",
    ),
    ("candidate=b'x'", lambda: recovery().run(QUESTION, b"x"), r"candidate is b'x'; give the answer's text"),
    (
        "a question as candidate",
        lambda: recovery().run(QUESTION, HumanMessage("x")),
        r"candidate is Human.*give the answer's",
    ),
    ("arun's candidate", lambda: asyncio.run(recovery().arun(QUESTION, 42)), r"candidate is 42; give"),
    ("Rollout(None)", lambda: Rollout(None), r"rollout: text is None; give a text"),
    ("run_id=7", lambda: recovery().run(QUESTION, run_id=7), r"run_id is 7; give a text"),
    ("no sampler", lambda: Recovery(verifier=ExactVerifier("42")).run(QUESTION), r"no candidate and sampler is None"),
    # the sampler
    ("a sampler's class", lambda: recovery(sampler=OpenAISampler), r"give an instance, OpenAISampler\(\.\.\.\)"),
    ("a number as sampler", lambda: recovery(sampler=42), r"OpenAISampler\(name\).*ChatModelSampler.*ports\.Sampler"),
    ("a function as sampler", lambda: recovery(sampler=undocumented), r"recovery: sampler is .*ChatModelSampler"),
    ("a blank name", lambda: recovery(sampler=" "), r"recovery: sampler is ' '; give"),
    (
        "a name of no provider",
        lambda: recovery(sampler="no-such-provider:x"),
        r"recovery: sampler is 'no-such-provider:x': ChatModelSampler",
    ),
    ("no sampler to delegate to", lambda: Delegate(None), r"Delegate: sampler is None; give .*ChatModelSampler"),
    ("a judge that is none", lambda: JudgeVerifier(3, rubric="good"), r"JudgeVerifier: sampler is 3; give"),
    ("a breaker around nothing", lambda: CircuitBreaker([]), r"CircuitBreaker: sampler is \[\]; give"),
    # the verifier
    ("no verifier", lambda: Recovery(ScriptedSampler([])), r"verifier is None; give an instance"),
    ("a verifier's class", lambda: recovery(verifier=ExactVerifier), r"give an instance, ExactVerifier\(\.\.\.\)"),
    ("a text as verifier", lambda: recovery(verifier="s3cret"), r"verifier is a str; give ExactVerifier\(expected\)"),
    ("a number as verifier", lambda: recovery(verifier=42), r"verifier is a int; give ExactVerifier\(expected\)"),
    ("a pattern as verifier", lambda: recovery(verifier=re.compile("42")), r"give RegexVerifier\(pattern\)"),
    ("a Pydantic model as verifier", lambda: recovery(verifier=Shape), r"give PydanticVerifier\(Shape\)"),
    ("a schema as verifier", lambda: recovery(verifier={"type": "object"}), r"give JsonSchemaVerifier\(schema\)"),
    ("two verifiers", lambda: recovery(verifier=[ExactVerifier("4"), ExactVerifier("2")]), r"AllOf\(.*second_opinion="),
    ("a chat model as verifier", lambda: recovery(verifier=model()), r"give JudgeVerifier\(the model, rubric=\.\.\.\)"),
    ("a sampler as verifier", lambda: recovery(verifier=ScriptedSampler([])), r"give JudgeVerifier\(the model"),
    (
        "a class as verifier",
        lambda: recovery(verifier=Unprintable),
        r"give an instance of a class of rfx_agent\.verifiers",
    ),
    (
        "a function of three",
        lambda: recovery(verifier=lambda a, b, c: True),
        r"recovery: verifier is .*: FunctionVerifier: fn takes 3",
    ),
    ("what cannot be printed", lambda: recovery(verifier=Unprintable()), r"verifier is an object of Unprintable; give"),
    (
        "a pattern as second opinion",
        lambda: recovery(second_opinion=re.compile("4")),
        r"second_opinion is .*give RegexV",
    ),
    (
        "a pattern in a panel",
        lambda: AllOf(ExactVerifier("4"), re.compile("4")),
        r"AllOf: a verifier is .*RegexVerifier\(p",
    ),
    ("a list for a panel", lambda: AnyOf([ExactVerifier("4"), is_42]), r"one list of verifiers; give them one by one"),
    # verifiers
    (
        "a broken pattern",
        lambda: RegexVerifier("("),
        r"RegexVerifier: pattern is '\('.*give a valid regular expression",
    ),
    (
        "a list as group",
        lambda: RegexVerifier("a", group=[1]),
        r"RegexVerifier: group is \[1\]; the pattern has 0 groups",
    ),
    ("a mapping for a model", lambda: PydanticVerifier({"a": int}), r"give a Pydantic model.*JsonSchemaVerifier"),
    ("an instance for a model", lambda: PydanticVerifier(Shape(total=1)), r"give the class"),
    ("a text for a model", lambda: PydanticVerifier(""), r"PydanticVerifier: model is ''; give a Pydantic model"),
    ("a model for a schema", lambda: JsonSchemaVerifier(Shape), r"give PydanticVerifier\(Shape\)"),
    ("a broken schema", lambda: JsonSchemaVerifier({"type": "objekt"}), r"not a JSON Schema: 'objekt'"),
    ("a text for a function", lambda: FunctionVerifier("42"), r"fn is '42'; give a function"),
    ("weak='False'", lambda: FunctionVerifier(is_42, weak="False"), r"weak is 'False'; give True or False"),
    ("units='no'", lambda: ExactVerifier("4", units="no"), r"ExactVerifier: units is 'no'; give True or False"),
    (
        "no rubric to speak of",
        lambda: JudgeVerifier(ScriptedSampler([]), rubric=42),
        r"rubric is 42; give a text, or a list",
    ),
    ("a share of half", lambda: AgreementVerifier(share="half"), r"AgreementVerifier: share is 'half'; give a number"),
    ("names of one text", lambda: TestsVerifier("assert f(1)", names="f"), r"names is 'f'; give a list"),
    ("bytes to compare with", lambda: ExactVerifier(b"42"), r"expected is a bytes; give a text, a number, or a list"),
    (
        "nothing to compare with",
        lambda: recovery(verifier=ExactVerifier()).run(QUESTION),
        r"give the verifier or the step exp",
    ),
    (
        "a mapping to compare with",
        lambda: recovery(verifier=MathVerifier()).run(Step.of("q", expected={"total": 7})),
        r"math: expected is a dict; give a text",
    ),
    ("no tests", lambda: recovery(verifier=TestsVerifier()).run(QUESTION), r"nothing to compare with; give"),
    # the other settings
    (
        "budget={...}",
        lambda: recovery(budget={"samples": 3}),
        r"budget is \{'samples': 3\}; give a RetryBudget, such as Ret",
    ),
    ("budget=None", lambda: recovery(budget=None), r"budget is None; give a RetryBudget"),
    ("budget=6", lambda: recovery(budget=6), r"budget is 6; give a RetryBudget, such as RetryBudget\(samples=6\)"),
    ("the budget's class", lambda: recovery(budget=RetryBudget), r"budget is <class .*give a RetryBudget, such as"),
    ("policy='default'", lambda: recovery(policy="default"), r"policy is 'default'; give .*rfx_agent\.policies"),
    (
        "calibration='published'",
        lambda: recovery(calibration="x"),
        r"calibration is 'x'; give a Calibration.*load\(path\)",
    ),
    ("price=2.5", lambda: recovery(price=2.5), r"price is 2\.5; give price_of\(.*Price\(prompt="),
    ("shared=MemoryStore()", lambda: recovery(shared=MemoryStore()), r"shared is .*give a SharedBudget"),
    ("escalation=True", lambda: recovery(escalation=True), r"escalation is True; give an Escalation, such as"),
    ("on_event='print'", lambda: recovery(on_event="print"), r"on_event is 'print'; give a plain function"),
    (
        "on_event=<coroutine function>",
        lambda: recovery(on_event=hook),
        r"on_event is <function hook.*give a plain function",
    ),
    ("clock=None", lambda: recovery(clock=None), r"clock is None; give a function .*time\.time"),
    ("seed='7'", lambda: recovery(seed="7"), r"seed is '7'; give a whole number"),
    ("seed=True", lambda: recovery(seed=True), r"seed is True; give a whole number"),
    ("seed=-1", lambda: recovery(seed=-1), r"seed is -1; give a whole number of at least 0"),
    ("hold_first='yes'", lambda: recovery(hold_first="yes"), r"hold_first is 'yes'; give True or False"),
    ("remedies='retry'", lambda: recovery(remedies="retry"), r"remedies is 'retry'; give a list such as \[Retry\(\)"),
    ("remedies=['retry']", lambda: recovery(remedies=["retry"]), r"a remedy is 'retry'; give an instance.*Retry\(\)"),
    (
        "remedies=[Revise]",
        lambda: recovery(remedies=[Revise]),
        r"give an instance of rfx_agent\.remedies, such as Revise\(\)",
    ),
    ("a function without a docstring", lambda: recovery(tool=undocumented), r"makes no tool.*docstring.*LangChainTool"),
    ("a number as tool", lambda: recovery(tool=42), r"tool is 42; give ProgramTool\(\), a LangChain tool, a function"),
    ("a tool's class", lambda: recovery(tool=ProgramTool), r"give an instance, ProgramTool\(\.\.\.\)"),
    # budgets
    ("RetryBudget(6)", lambda: RetryBudget(6), r"6 has no name; write .*=6\. It takes attempts, samples"),
    ("RetryBudget(retries=3)", lambda: RetryBudget(retries=3), r"no parameter 'retries'; did you mean samples=\?"),
    ("RetryBudget(sample=3)", lambda: RetryBudget(sample=3), r"no parameter 'sample'; did you mean samples=\?"),
    ("RetryBudget.of(6)", lambda: RetryBudget.of(6), r"the caps are 6; give a mapping"),
    ("RetryBudget.of(retries)", lambda: RetryBudget.of({"retries": 3}), r"unknown cap 'retries'; the caps are"),
    ("Price(2.5)", lambda: Price(2.5), r"price: 2\.5 has no name; write prompt=2\.5"),
    ("Price(input=1)", lambda: Price(input=1), r"no parameter 'input'; did you mean prompt=\?"),
    ("scopes='t'", lambda: SharedBudget(store=MemoryStore(), scopes="t"), r"scopes is 't'; give a mapping"),
    (
        "one limit for a list",
        lambda: SharedBudget(store=MemoryStore(), limits=Window("t", "tokens", 5, per="day")),
        r"limits is Window.*give a list such as",
    ),
    (
        "a text as limit",
        lambda: SharedBudget(store=MemoryStore(), limits=["5/day"]),
        r"limits has '5/day'; give Window, Ratio",
    ),
    ("a path as store", lambda: SharedBudget(store="budget.db"), r"store is 'budget\.db'; give one such as .*SQLStore"),
    (
        "a key that is no text",
        lambda: Window("tenant", "tokens", 5, per="day", key=7),
        r"Window\.key is 7; give a text",
    ),
    (
        "Window(window=)",
        lambda: Window("tenant", "tokens", 5, window="day"),
        r"limit: Window: there is no parameter 'window'",
    ),
    ("Ratio of texts", lambda: Ratio("tenant", "tokens", share="0.2", floor=5), r"Ratio\.share is '0\.2'; give"),
    ("InFlight of a text", lambda: InFlight("tenant", "5"), r"InFlight\.most is '5'; give a whole number"),
    ("Escalation(60)", lambda: Escalation(60), r"escalation: 60 has no name; write deadline=60"),
    # parameters of another name
    (
        "Recovery(verifiers=)",
        lambda: Recovery(ScriptedSampler([]), verifiers=is_42),
        r"'verifiers'; did you mean verifier=\?",
    ),
    (
        "Recovery(max_retries=3)",
        lambda: recovery(max_retries=3),
        r"'max_retries'; did you mean budget=RetryBudget\(samples=",
    ),
    ("Recovery(llm=)", lambda: recovery(llm=model()), r"no parameter 'llm'; did you mean sampler=\?"),
    (
        "Delegate(model=)",
        lambda: Delegate(model=model()),
        r"Delegate: there is no parameter 'model'; did you mean sampler=\?",
    ),
]


def is_42(text: str) -> bool:
    return "42" in text


@pytest.mark.parametrize(("make", "says"), [x[1:] for x in MISTAKES], ids=[x[0] for x in MISTAKES])
def test_a_mistake_says_what_to_give(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make()
    assert "s3cret" not in str(caught.value)  # what an answer is compared with is nobody's to see
    assert len(str(caught.value)) < 500


def test_a_mistake_that_a_run_would_meet_costs_no_call() -> None:
    sampler = ScriptedSampler([], last="42")
    for verifier in (ExactVerifier(), MathVerifier(), AllOf(is_42, ExactVerifier()), Cascade(is_42, MathVerifier())):
        with pytest.raises(ConfigError, match="nothing to compare with"):
            recovery(sampler=sampler, verifier=verifier).run(QUESTION)
    with pytest.raises(ConfigError, match="nothing to compare with"):
        recovery(sampler=sampler, verifier=is_42, second_opinion=ExactVerifier()).run(QUESTION)
    assert sampler.requests == []


def test_a_users_own_chain_may_run_on_what_no_model_can_be_sent() -> None:
    said = iter(["no", "no", "42"])
    assert with_recovery(lambda text: "42", verifier=is_42).invoke("a \ud83d b") == "42"
    assert with_recovery(lambda text: next(said), verifier=is_42).invoke("a \ud83d b") == "42"
    model_behind = Recovery(None, is_42, remedies=[Delegate(model())])
    assert model_behind.run("a \ud83d b", "no").outcome.status == "rescued"


@pytest.mark.parametrize("candidate", ["41", None])
def test_a_config_error_within_a_verifier_stays_one_and_another_exception_is_its_own(candidate: str | None) -> None:
    def misconfigured(text: str) -> bool:
        raise ConfigError("rates: give a file")

    def broken(text: str) -> bool:
        raise KeyError("total")

    with pytest.raises(ConfigError, match="rates: give a file"):
        recovery(verifier=misconfigured).run(QUESTION, candidate)
    with pytest.raises(ConfigError, match="rates: give a file"):
        asyncio.run(recovery(verifier=misconfigured).arun(QUESTION, candidate))
    with pytest.raises(VerifierError, match="broken broke on rollout r0: KeyError"):
        recovery(verifier=broken).run(QUESTION, candidate)


class Callable42:
    def __call__(self, text: str) -> bool:
        return is_42(text)

    def method(self, step: Step, rollout: Rollout) -> bool:
        return is_42(rollout.text)


async def later(text: str) -> bool:
    return is_42(text)


def starts(prefix: str, text: str) -> bool:
    return text.startswith(prefix)


FUNCTIONS = [
    is_42,
    lambda text: "42" in text,
    lambda step, rollout: rollout.text == "42",
    functools.partial(starts, "42"),
    Callable42(),
    Callable42().method,
    later,
    str.isdigit,
]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_a_function_is_a_verifier_whose_pass_is_a_proof(fn: Any) -> None:
    made = Recovery(ScriptedSampler([], last="42"), fn)
    assert isinstance(made.verifier, FunctionVerifier)
    for case in (made.run(QUESTION, "no"), asyncio.run(made.arun(QUESTION, "no"))):
        assert case.outcome is not None
        assert (case.outcome.status, case.outcome.weak, case.outcome.confidence) == ("rescued", False, 1.0)


def test_a_function_is_taken_wherever_a_verifier_is() -> None:
    for panel in (AllOf(is_42, str.isdigit), AnyOf(is_42, str.isdigit), Cascade(is_42, str.isdigit)):
        assert panel.verify(Step.of(QUESTION), Rollout("42")).passed
    assert isinstance(recovery(second_opinion=is_42).second_opinion, FunctionVerifier)
    assert verifier_of(ExactVerifier("42"), where="x").name == "exact"


def test_a_chat_model_is_taken_wherever_a_sampler_is() -> None:
    assert Recovery(model(), is_42).run(QUESTION).outcome.text == "42"
    assert isinstance(Delegate(model()).sampler, ChatModelSampler)
    assert isinstance(JudgeVerifier(model(), rubric="good").sampler, ChatModelSampler)
    assert CircuitBreaker(model()).name == sampler_of(model(), where="x").name

    class Elsewhere(Custom):
        name = "elsewhere"
        sampler = model()

        def messages(self, step: Step, failed: Sequence[Rollout]) -> Any:
            return step.messages

    case = Recovery(None, is_42, remedies=[Elsewhere()]).run(QUESTION, "no")
    assert case.outcome is not None
    assert (case.outcome.status, case.outcome.by) == ("rescued", "elsewhere")


def multiply(a: int, b: int) -> int:
    "Multiply two numbers."
    return a * b


@pytest.mark.parametrize("given", [multiply, tool(multiply), StructuredTool.from_function(multiply)])
def test_a_langchain_tool_or_a_function_with_a_docstring_is_a_tool(given: Any) -> None:
    arguments = '{"a": 6, "b": 7}'
    made = Recovery(ScriptedSampler(["no", arguments]), is_42, tool=given, remedies=[]).run(QUESTION, "no")
    assert made.outcome is not None
    assert tool_of(given, where="x").run(arguments).answer == "42"
    assert Tool(given).tool.name == "multiply"


def test_a_step_is_made_of_langchains_messages_too() -> None:
    given = [SystemMessage("Be brief."), HumanMessage(QUESTION), {"role": "user", "content": "Now."}]
    step = Step.of(given)
    assert step == Step.of([{"role": "user", "content": QUESTION}, given[2]], system="Be brief.")
    assert recovery().run(given).step == step


@pytest.mark.parametrize(
    "candidate", ["41", Rollout("41"), AIMessage("41"), AIMessage([{"type": "text", "text": "41"}])]
)
def test_a_candidate_is_a_text_a_rollout_or_a_models_message(candidate: Any) -> None:
    for case in (recovery().run(QUESTION, candidate), asyncio.run(recovery().arun(QUESTION, candidate))):
        assert (case.rollouts[0].text, case.rollouts[0].id) == ("41", "r0")
        assert case.outcome is not None
        assert case.outcome.status == "rescued"


def test_how_a_models_message_ended_is_read() -> None:
    cut = AIMessage("4", response_metadata={"finish_reason": "length"})
    assert recovery(remedies=[]).run(QUESTION, cut).rollouts[0].kind == "cut"


@pytest.mark.parametrize(
    ("cls", "parameter"),
    [(RetryBudget, "samples"), (Recovery, "verifier"), (Price, "prompt"), (Window, "per"), (SharedBudget, "scopes"),
     (Delegate, "price"), (Escalation, "deadline")],
)  # fmt: skip
def test_signatures_stay_visible(cls: Any, parameter: str) -> None:
    assert parameter in inspect.signature(cls).parameters
    assert cls.__init__.__name__ == "__init__"
    made = RetryBudget(samples=3)
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301  # our own


def test_an_error_of_ones_own_within_a_constructor_is_left_alone() -> None:
    class Odd(ScriptedVerifier):
        @property
        def needs_peers(self) -> bool:  # type: ignore[override]
            raise TypeError("my own")

    with pytest.raises(TypeError, match="my own"):
        recovery(second_opinion=Odd(["42"]))


BASE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

BLOCKED = {"langchain", "jsonschema", "sqlalchemy", "math_verify", "xllamacpp", "circuitbreaker", "genai_prices",
           "torch", "transformers", "polars", "pyarrow", "opentelemetry", "redis"}
sys.meta_path[:] = [Without(x) for x in sys.meta_path if hasattr(x, "find_spec")]
import importlib, inspect, pydoc
import rfx_agent
for name in ("", ".samplers", ".samplers.transformers", ".budgets", ".verifiers", ".evidence", ".escalation"):
    package = importlib.import_module("rfx_agent" + name)
    assert pydoc.render_doc(package)
    assert {x for x, _ in inspect.getmembers(package)} >= set(package.__all__), package
    assert set(dir(package)) >= set(package.__all__)
    exec(f"from {package.__name__} import *")
    assert not hasattr(package, "no_such_name")
from rfx_agent import RecoverabilityMiddleware
assert "langchain is not installed" in RecoverabilityMiddleware.__doc__
uses = [lambda: RecoverabilityMiddleware(verifier=len), lambda: type("Mine", (RecoverabilityMiddleware,), {}),
        lambda: rfx_agent.MathVerifier(), lambda: rfx_agent.JsonSchemaVerifier({})]
for use in uses:
    try:
        use()
    except rfx_agent.ConfigError as error:
        print(error)
"""


def test_a_base_install_has_every_name_and_says_on_use_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [re.findall(r"rfx-agent\[(\w+)\]", line) for line in said] == [
        ["langchain"],
        ["langchain"],
        ["math"],
        ["schema"],
    ]
    assert said[0].startswith("RecoverabilityMiddleware: langchain is not installed")


def test_a_name_that_is_not_there_is_pythons_own_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recovry'"):
        _ = rfx_agent.Recovry
    with pytest.raises(ImportError, match="Recovry"):
        exec("from rfx_agent import Recovry")  # noqa: S102  # our own


class Changing:
    """A stranger's verifier that changes."""

    name = "changing"

    def __init__(self) -> None:
        self.right = "42"

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        return Verdict(rollout.text == self.right)


def test_what_a_strangers_object_changes_later_is_seen() -> None:
    given = Changing()
    made = recovery(verifier=given)
    verifier: Any = made.verifier
    assert (verifier.name, verifier.instant, verifier.rates) == ("changing", False, None)
    given.name, given.instant, given.right = "changed", True, "41"  # type: ignore[attr-defined]
    assert (verifier.name, verifier.instant, verifier.right) == ("changed", True, "41")
    assert asyncio.run(made.arun(QUESTION, "41")).outcome.status == "accepted"
    del given.name
    assert verifier.name == "changing"
    given.verify = lambda step, rollout, peers=(): Verdict(True, reason="anything")  # type: ignore[method-assign]
    assert verifier.verify(Step.of(QUESTION), Rollout("x")).reason == "anything"
    assert asyncio.run(verifier.averify(Step.of(QUESTION), Rollout("x"))).reason == "anything"
