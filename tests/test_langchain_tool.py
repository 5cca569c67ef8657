"""A LangChain tool in the place of the program."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langchain_core.tools import StructuredTool, ToolException, tool
from langgraph.errors import GraphInterrupt

from rfx_agent import ports
from rfx_agent.errors import ConfigError, ToolInputError
from rfx_agent.records import Spend, Step, ToolResult
from rfx_agent.tools import LangChainTool

STEP = Step.of("What is 4721 times 389?", expected="1836469")


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool
async def multiply_slowly(a: int, b: int) -> int:
    """Multiply two integers."""
    await asyncio.sleep(60)
    return a * b


def _returning(value, **settings):
    @tool(**settings)
    def give(x: int):
        """Give it."""
        if isinstance(value, BaseException):
            raise value
        return value

    return give


def _both(wrapped, source='{"x": 1}'):
    one, two = wrapped.run(source), asyncio.run(wrapped.arun(source))
    assert (one.answer, one.output, one.error) == (two.answer, two.output, two.error)
    return one


def test_is_a_tool():
    wrapped = LangChainTool(multiply, seconds=3)
    assert isinstance(wrapped, ports.Tool)
    assert (wrapped.name, wrapped.bound) == ("multiply", Spend(tool_seconds=3))
    assert LangChainTool(multiply, name="calc").name == "calc"


def test_prompt_shows_problem_description_and_schema():
    (message,) = LangChainTool(multiply).prompt(STEP, prefix="Well, </work>")
    text = message["content"]
    assert "<problem>\nWhat is 4721 times 389?\n</problem>" in text
    assert "multiply: Multiply two integers." in text
    assert '"required": ["a", "b"]' in text
    assert text.count("</work>") == 1
    assert "1836469" not in text


def test_repair_shows_arguments_and_error_once():
    (message,) = LangChainTool(multiply).repair(STEP, '{"a": 1}', ToolResult(None, error="ValueError: no"))
    assert message["content"].count('{"a": 1}') == 1
    assert "<error>\nValueError: no\n</error>" in message["content"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"a": 2, "b": 3}',
        'Sure:\n```json\n{"a": 2, "b": 3}\n```',
        '```json\n{"a": 9, "b": 9}\n```\nNo:\n```json\n{"a": 2, "b": 3}\n```',
        'I call it with {"a": 2, "b": 3}.',
        '{"a": "2", "b": 3}',
    ],
)
def test_parse_and_run(reply):
    wrapped = LangChainTool(multiply)
    result = _both(wrapped, wrapped.parse(reply))
    assert (result.answer, result.output, result.error) == ("6", "6", None)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("", "no JSON object|Expecting value"),
        ("no", "Expecting value"),
        ("[2, 3]", "list instead of an object"),
        ('{"a": 2}', "Field required"),
        ('{"a": 2, "b": "x"}', "valid integer"),
        ("[" * 100_000, "recursion|Expecting"),
        ("{" * 100_000, "Expecting"),
    ],
)
def test_parse_refuses(reply, told):
    with pytest.raises(ToolInputError, match=told):
        LangChainTool(multiply).parse(reply)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("text", "text"),
        (7, "7"),
        ("", ""),
        ({"b": [1]}, '{"b": [1]}'),
        ([{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, {"type": "text", "text": "b"}], "a\nb"),
    ],
)
def test_output_as_text(value, answer):
    assert _both(LangChainTool(_returning(value))).answer == answer


def test_artifact_is_left_out():
    wrapped = LangChainTool(_returning(("content", {"big": "artifact"}), response_format="content_and_artifact"))
    assert _both(wrapped).answer == "content"


def test_failures_are_data():
    result = _both(LangChainTool(_returning(ValueError("no" * 1000))))
    assert result.answer is None
    assert result.error.startswith("ValueError: nono")
    assert len(result.error) < 600
    handled = StructuredTool.from_function(
        func=_returning(ToolException("sorry")).func, name="t", description="d", handle_tool_error=True
    )
    assert _both(LangChainTool(handled)).error == "sorry"  # an error that the tool returns is no answer


def test_control_flow_passes_through():
    wrapped = LangChainTool(_returning(GraphInterrupt()))
    with pytest.raises(GraphInterrupt):
        wrapped.run('{"x": 1}')
    with pytest.raises(GraphInterrupt):
        asyncio.run(wrapped.arun('{"x": 1}'))


def test_answer_function_and_limits():
    pick = LangChainTool(_returning("result: 5"), answer=lambda text: text.partition(": ")[2] or None)
    assert _both(pick).answer == "5"
    nothing = LangChainTool(_returning("none"), answer=lambda text: text.partition(": ")[2] or None)
    assert "no answer" in _both(nothing).error
    long = _both(LangChainTool(_returning("x" * 100), output=10))
    assert (long.answer, long.output) == (None, "xxxxxxxxxx… [90 more characters]")


def test_timeout():
    assert "TimeoutError" in asyncio.run(LangChainTool(multiply_slowly, seconds=0.05).arun('{"a": 1, "b": 2}')).error
    release = threading.Event()

    @tool
    def wait(x: int) -> int:
        """Wait."""
        release.wait(60)
        return x

    assert "TimeoutError" in LangChainTool(wait, seconds=0.05).run('{"x": 1}').error
    release.set()


def test_tool_with_a_plain_schema():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    wrapped = LangChainTool(
        StructuredTool.from_function(
            func=lambda **kwargs: kwargs["x"] + 1, name="inc", description="d", args_schema=schema
        )
    )
    assert _both(wrapped, wrapped.parse('{"x": 1}')).answer == "2"
    with pytest.raises(ToolInputError, match="missing: x"):
        wrapped.parse("{}")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LangChainTool(len), "give a langchain_core BaseTool"),
        (lambda: LangChainTool(multiply, seconds=0), "seconds is 0"),
        (lambda: LangChainTool(multiply, output=0), "output is 0"),
    ],
)
def test_settings_fail_at_once(make, told):
    with pytest.raises(ConfigError, match=told):
        make()
