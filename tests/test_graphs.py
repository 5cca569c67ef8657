"""The served graphs: what an assistant may configure, and what only the deployment's operator decides."""

import importlib
import json
import re
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from servers import Answer, ChatServer, choice, completion

from rfx_agent import ConfigError, ExactVerifier, LocalSampler, MathVerifier, OpenAISampler, RegexVerifier, Step
from rfx_agent.policies import FixedPolicy, LearnedPolicy
from rfx_agent.records import SampleRequest, Spend
from rfx_agent.verifiers import AgreementVerifier

ROOT = Path(__file__).parent.parent
SERVER = "http://127.0.0.1:8000/v1"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads ``graphs.settings`` anew under an environment."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(module: str = "settings", **environment: str) -> Any:
        for name in (
            "BASE_URL",
            "BASE_URLS",
            "MODEL",
            "API_KEY",
            "SEED",
            "MAX_TOKENS",
            "STORE",
            "TOKENS_PER_HOUR",
            "SANDBOX",
        ):
            monkeypatch.delenv(f"RFX_{name}", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("graphs.settings", "graphs.recovery", "graphs.solver"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(f"graphs.{module}")

    return load


def test_the_same_settings_are_one_deployment_and_one_model(fresh: Any) -> None:
    s = fresh()
    assert s.recovery_of(None) is s.recovery_of(s.Settings())
    warmer = s.recovery_of(s.Settings(temperature=1.0))
    assert warmer is not s.recovery_of(None)
    assert isinstance(warmer.sampler, LocalSampler)
    assert warmer.sampler is s.recovery_of(None).sampler
    assert warmer.temperature == 1.0


def test_the_operator_names_the_sandbox_and_there_is_one(fresh: Any) -> None:
    s = fresh()
    one, other = s.recovery_of(None).tool, s.recovery_of(s.Settings(temperature=1.0)).tool
    assert one is other
    assert one.sandbox.name == "monty"
    with pytest.raises(ConfigError, match=r"RFX_SANDBOX is 'docker'; give monty or bubblewrap"):
        fresh(RFX_SANDBOX="docker").recovery_of(None)
    with pytest.raises(ConfigError, match="sandbox"):
        s.Settings(sandbox="monty")  # is not an assistant's to choose


def test_two_first_runs_at_once_build_one(fresh: Any) -> None:
    s, made = fresh(), []
    ready = threading.Barrier(8)

    def run() -> None:
        ready.wait()
        made.append(s.recovery_of(s.Settings(tokens=77)))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in made}) == 1


def test_settings_become_the_parts_they_name(fresh: Any) -> None:
    s = fresh()

    def made(**settings: Any) -> Any:
        return s.recovery_of(s.Settings(**settings))

    kinds = {"exact": ExactVerifier, "math": MathVerifier, "regex": RegexVerifier, "agreement": AgreementVerifier}
    for name, kind in kinds.items():
        assert type(made(verifier=name, pattern="x").verifier) is kind
    assert made(policy="fixed", remedies=["tool", "retry"]).policy == FixedPolicy(("tool", "retry"))
    assert type(made(policy="learned").policy) is LearnedPolicy
    assert made(tool=False).tool is None
    budget = made(attempts=1, samples=2, tokens=3, seconds=4, tool_seconds=5, escalations=0).budget
    assert (budget.attempts, budget.samples, budget.tokens, budget.seconds, budget.tool_seconds) == (1, 2, 3, 4, 5)
    assert budget.escalations == 0
    assert made(deadline=None, default_decision="approve").escalation.default == "approve"


def test_the_environment_gives_the_defaults(fresh: Any) -> None:
    s = fresh(RFX_BASE_URL=SERVER, RFX_MODEL="theirs", RFX_SEED="5", RFX_MAX_TOKENS="99")
    made = s.recovery_of(None)
    assert isinstance(made.sampler, OpenAISampler)
    assert (made.sampler.name, made.seed, made.max_tokens) == ("theirs", 5, 99)
    # Another model on the deployment's own server.
    assert s.recovery_of(s.Settings(model="other")).sampler.name == "other"
    assert s.Settings.model_json_schema()["properties"]["max_tokens"]["default"] == 99


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"RFX_SEED": "x"}, "RFX_SEED is 'x'"), ({"RFX_MAX_TOKENS": "many"}, "RFX_MAX_TOKENS is 'many'")],
)
def test_an_environment_that_cannot_work_is_refused(fresh: Any, environment: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        fresh(**environment)


def test_a_store_in_the_environment_is_shared_by_all_assistants(fresh: Any, tmp_path: Path) -> None:
    s = fresh(RFX_STORE=f"sqlite:///{tmp_path}/budgets.db", RFX_TOKENS_PER_HOUR="50000")
    made = s.recovery_of(None)
    assert s.recovery_of(s.Settings(temperature=1.0)).shared is made.shared
    (account,) = made.shared.claims(Spend(tokens=1))
    assert (account.account, account.most) == ("global tokens/3600s", 50_000)
    with pytest.raises(ConfigError, match="RFX_STORE is not"):
        fresh(RFX_TOKENS_PER_HOUR="1").recovery_of(None)


def test_half_a_server_is_refused(fresh: Any) -> None:
    for name in ("RFX_BASE_URL", "RFX_MODEL"):
        s = fresh(**{name: SERVER})
        with pytest.raises(ConfigError, match="go together"):
            s.recovery_of(None)
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        fresh(RFX_MAX_TOKENS="0").recovery_of(None)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"temperature": 9}, "settings: temperature is 9: "),
        ({"verifier": "oracle"}, "settings: verifier is 'oracle': "),
        ({"verifier": "regex"}, "give the pattern"),
        ({"verifier": "regex", "pattern": "("}, "pattern is '"),
        ({"policy": "best"}, "settings: policy is 'best': "),
        ({"remedies": []}, "settings: remedies is"),
        ({"remedies": ["retry"] * 65}, "…: Tuple should have at most 64 items"),
        ({"samples": -1}, "settings: samples is -1"),
        ({"base_url": SERVER}, "name the server's model"),
        ({"base_url": "http://elsewhere/v1", "model": "m"}, "does not allow"),
        ({"model": "m"}, "has no server"),
        ({"api_key_env": "HOME"}, "settings: api_key_env is 'HOME'"),
        ({"api_key": "sk-1"}, "settings: api_key is"),
    ],
)
def test_settings_that_cannot_work_are_refused(fresh: Any, settings: dict[str, Any], why: str) -> None:
    s = fresh(RFX_BASE_URLS=f"{SERVER}/ , https://another/v1")
    with pytest.raises(ConfigError, match=re.escape(why)):
        s.recovery_of(s.Settings(**settings))


def reply(body: dict[str, Any], i: int) -> Answer:
    return Answer(body=completion(*[choice("Answer: 42")] * body.get("n", 1), name=f"c{i}"))


def test_the_key_goes_to_servers_that_the_operator_listed_and_to_no_other(fresh: Any) -> None:
    with ChatServer(reply) as listed, ChatServer(reply) as other:
        keys = {"RFX_API_KEY": "first", "RFX_API_KEY_B": "second", "RFX_API_KEY_C": "third"}
        own = {"RFX_BASE_URL": "http://127.0.0.1:1/v1", "RFX_MODEL": "m"}
        s = fresh(**own, **keys, RFX_BASE_URL_B=listed.base_url, RFX_BASE_URL_C=listed.base_url)
        for name, key in (("", "second"), ("RFX_API_KEY_B", "second"), ("RFX_API_KEY_C", "third")):
            made = s.recovery_of(s.Settings(base_url=listed.base_url + "/", model="m", api_key_env=name))
            made.run(Step.of("What is 6 times 7?", expected="42"))
            assert listed.headers[-1]["authorization"] == f"Bearer {key}"
        with pytest.raises(ConfigError, match="RFX_BASE_URLS"):
            s.recovery_of(s.Settings(base_url=other.base_url, model="m"))
        for name in ("RFX_API_KEY", "RFX_API_KEY_D"):
            with pytest.raises(ConfigError, match="no key of"):
                s.recovery_of(s.Settings(base_url=listed.base_url, model="m", api_key_env=name))
        assert other.bodies == []


def test_a_server_without_a_key_of_its_own_is_sent_none(fresh: Any) -> None:
    with ChatServer(reply) as listed:
        own = {"RFX_BASE_URL": "http://127.0.0.1:1/v1", "RFX_MODEL": "m", "RFX_API_KEY": "secret-of-the-other"}
        s = fresh(**own, RFX_BASE_URLS=listed.base_url)
        s.recovery_of(s.Settings(base_url=listed.base_url, model="m")).run(Step.of("6 times 7?", expected="42"))
        assert listed.headers[-1]["authorization"] == "Bearer none"


@pytest.mark.parametrize("suffix", ["", "_B"])
def test_an_empty_key_is_none_and_nothing_of_openais_goes_to_a_listed_server(
    fresh: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "of-openai")
    with ChatServer(reply) as listed:
        own = {"RFX_BASE_URL": "http://127.0.0.1:1/v1", "RFX_MODEL": "m"}
        s = fresh(**(own | {f"RFX_BASE_URL{suffix}": listed.base_url, f"RFX_API_KEY{suffix}": ""}))
        # Blanks around a URL, as in the operator's list, change nothing.
        for url in (listed.base_url, f" {listed.base_url}\n"):
            s.recovery_of(s.Settings(base_url=url, model="m")).run(Step.of("6 times 7?", expected="42"))
        OpenAISampler("m", base_url=listed.base_url, api_key="").sample(
            SampleRequest(({"role": "user", "content": "?"},))
        )
        assert len(listed.headers) == 3
        assert not [x for x in listed.headers if "of-openai" in x.values()]


@pytest.mark.parametrize("name", ["max_tokens", "attempts", "samples", "tokens", "seconds", "deadline", "concurrency"])
def test_the_operator_says_the_most_that_an_assistant_may_set(fresh: Any, name: str) -> None:
    s = fresh(**{f"RFX_MOST_{name.upper()}": "40000"})
    s.Settings(**{name: 40_000})
    with pytest.raises(ConfigError, match=rf"settings: {name} is 40001"):
        s.Settings(**{name: 40_001})
    with pytest.raises(ConfigError, match=f"settings: {name} is"):
        fresh().Settings(**{name: 10**12})


def test_the_solver_needs_only_its_own_keys(fresh: Any) -> None:
    with ChatServer(reply) as server:
        solver = fresh("solver", RFX_BASE_URL=server.base_url, RFX_MODEL="m")
        graph = solver.builder.compile(checkpointer=InMemorySaver())  # which the server gives it
        thread: Any = {"configurable": {"thread_id": "t"}}
        state = graph.invoke({"question": "What is 6 times 7?", "expected": "42"}, thread)
    assert (state["answer"], state["outcome"]["status"]) == ("42", "accepted")
    assert set(state) == {"question", "expected", "answer", "outcome"}
    assert server.bodies[0]["messages"][0]["content"].endswith("End with: Answer: <answer>")


def test_the_images_packages_are_those_of_the_extras() -> None:
    """``langgraph build`` installs the project without extras, so what they bring is listed beside it."""
    listed = json.loads((ROOT / "langgraph.json").read_text())["dependencies"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {x for name in ("local", "math") for x in extras[name] if not x.startswith("pip>")}
    assert listed[0] == "."
    assert set(listed[1:]) == wanted
