"""JSON out of text, under a JSON Schema or a Pydantic model."""

from __future__ import annotations

import datetime
import json

import pytest
from pydantic import BaseModel
from verifier_conformance import HOSTILE, check_hostile, check_verifier

from rfx_agent.errors import ConfigError
from rfx_agent.records import Rollout, Step
from rfx_agent.verifiers import JsonSchemaVerifier, PydanticVerifier

STEP = Step.of("Describe the order as JSON.")
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["n"],
}


class Order(BaseModel):
    n: int
    day: datetime.date | None = None


def _judge(verifier, text):
    return verifier.verify(STEP, Rollout(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 3}',
        'The result is {"n": 3} [1].',  # a citation mark
        '{"n": 3} [1][2]',
        'See [1, 2]: {"n": 3}',
        'A 5" pipe: {"n": 3}',  # an inch
        'He said "five, {"n": 3}',  # a quote that is never closed
        '[see the 5" pipe] {"n": 3}, ok',
        '{"n": 3}\nThat was {"n": "x"}',  # the one that parses as wanted
        '{"other": true} and {"n": 3} and {"n": null}',
        '<think>{"n": 9}</think>{"n": 3}',
        ' \n{"n":\n3}\n',
        'Here it is:\n```json\n{"n": 3}\n```\nEnjoy.',
        '```\n{"n": 3}\n```',
        '```json\n{"n": 9}\n```\nNo:\n```json\n{"n": 3}\n```',  # the last counts
        '```json\n{"n": 3}',  # cut off before its closing fence
        'I would say\n{"n": 3}\nand [1] is a footnote',  # one that begins a line before one within it
        'The result is {"n": 3}.',
        'With a brace in a string: {"n": 3, "x": "}{"}',
        'a "quote, then\n{"n": 3}',
    ],
)
@pytest.mark.parametrize("verifier", [JsonSchemaVerifier(schema=SCHEMA), PydanticVerifier(model=Order)])
def test_json_is_found(verifier, text):
    verdict = _judge(verifier, text)
    assert verdict.passed, verdict.reason
    assert '"n":3' in verdict.answer


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"n": 0}', "at $.n: 0 is less than the minimum of 1"),
        ('{"n": 1, "tags": ["a", 2]}', "at $.tags[1]: 2 is not of type 'string'"),
        ("{}", "at $: 'n' is a required property"),
        ("[]", "at $: [] is not of type 'object'"),
        ('{"n": 1, "n": 2}', "the key 'n' stands twice"),
        ('{"n": NaN}', "at n: NaN is no JSON number (expected a finite one)"),
        ('{"n": 1, "tags": [Infinity]} [1]', "at tags.0: Infinity is no JSON number"),
        ('{"n": 1e999}', "1e999 is too large a number"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ("no JSON here", "not JSON"),
        ("", "the text is empty"),
    ],
)
def test_reason_names_the_place(text, told):
    verdict = _judge(JsonSchemaVerifier(schema=SCHEMA), text)
    assert not verdict.passed
    assert told in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        'Here: {"result": {"n": 3}}',  # a part of an answer is none
        'Here: {"result":\n{"n": 3}\n}',
        'Here: {"a": [1, {"n": 3} and it was cut',
        '[{"n": 3}, {"n":',
        '<think>{"n": 3}</think>I cannot say.',
        '<think>{"n": 3}',
    ],
)
@pytest.mark.parametrize("verifier", [JsonSchemaVerifier(schema=SCHEMA), PydanticVerifier(model=Order)])
def test_json_within_something_else_is_not_found(verifier, text):
    assert not _judge(verifier, text).passed


def test_an_answer_that_may_be_anything_is_no_citation_mark():
    assert _judge(JsonSchemaVerifier(schema=True), 'It is {"n": 3} [1].').answer == '{"n":3}'
    assert _judge(JsonSchemaVerifier(schema=True), "[1]").answer == "[1]"
    assert _judge(JsonSchemaVerifier(schema=True), "They are [1, 2, 3] [4].").answer == "[1,2,3]"


def test_feedback_says_where_what_was_expected_and_what_stood_there():
    told = _judge(JsonSchemaVerifier(schema=SCHEMA), '{"n": 0, "tags": ["a", 2]}').feedback
    assert "at $.n: 0 is less than the minimum of 1 (expected minimum: 1; got 0)" in told
    assert """at $.tags[1]: 2 is not of type 'string' (expected type: "string"; got 2)""" in told
    told = _judge(JsonSchemaVerifier(schema=SCHEMA), '{"m": 1}').feedback
    assert """(expected required: ["n"]; got an object with the keys m)""" in told
    told = _judge(PydanticVerifier(model=Order), '{"m": 1, "day": "soon"}').feedback
    assert "at n: Field required (got an object with the keys m, day)" in told
    assert "at day: Input should be a valid date" in told
    assert '(got "soon")' in told
    huge = _judge(JsonSchemaVerifier(schema=SCHEMA), json.dumps({"n": "x" * 10_000}))
    assert len(huge.feedback) < 1000


@pytest.mark.parametrize("value", ['"nan"', '"inf"', '"-Infinity"'])
def test_what_is_no_number_is_no_float(value):
    class Reading(BaseModel):
        inner: list[float]

    verdict = _judge(PydanticVerifier(model=Reading), f'{{"inner": [1.5, {value}]}}')
    assert (verdict.passed, verdict.kind) == (False, "malformed")
    assert "at inner.1: Input should be a finite number" in verdict.feedback


def test_first_errors_only():
    schema = {"type": "array", "items": {"type": "string"}}
    reason = _judge(JsonSchemaVerifier(schema=schema), str(list(range(1000)))).reason
    assert reason.count("is not of type") == 3
    assert reason.endswith("; and more")


@pytest.mark.parametrize("text", ["[]", "{}", '""', "0", "false", "null"])
def test_empty_is_valid_unless_the_schema_says_otherwise(text):
    verdict = _judge(JsonSchemaVerifier(schema=True), text)
    assert (verdict.passed, verdict.answer) == (True, text)
    assert not _judge(JsonSchemaVerifier(schema={"type": "array", "minItems": 1}), text).passed


def test_answers_are_canonical():
    one = _judge(JsonSchemaVerifier(schema=SCHEMA), '{"tags": ["é"], "n": 3}').answer
    two = _judge(JsonSchemaVerifier(schema=SCHEMA), '```json\n{ "n" : 3 , "tags" : ["\\u00e9"] }\n```').answer
    assert one == two == '{"n":3,"tags":["é"]}'
    huge = "9" * 1000
    assert _judge(JsonSchemaVerifier(schema={"type": "integer"}), huge).answer == huge


def test_pydantic():
    verifier = PydanticVerifier(model=Order)
    assert _judge(verifier, '{"n": "7", "day": "2024-02-29"}').answer == '{"day":"2024-02-29","n":7}'
    assert "at n: Input should be a valid integer" in _judge(verifier, '{"n": "x"}').reason
    assert "at n: Field required" in _judge(verifier, "{}").reason
    assert "at the top:" in _judge(verifier, "[]").reason
    assert not _judge(PydanticVerifier(model=Order, strict=True), '{"n": "7"}').passed
    assert _judge(PydanticVerifier(model=Order, strict=True), '{"n": 7, "day": "2024-02-29"}').passed
    assert _judge(PydanticVerifier(model=list[int]), "[]").answer == "[]"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "pattern": r"^(\w+\s?)+$"}, '"' + "a" * 60 + '!"'),
        ({"type": "array", "uniqueItems": True}, "[" + ",".join(f'{{"a":{i},"b":[{i}]}}' for i in range(8000)) + "]"),
    ],
)
def test_slow_schema_is_stopped(schema, value):
    verdict = _judge(JsonSchemaVerifier(schema=schema, seconds=0.2), value)
    assert not verdict.passed
    assert "stopped" in verdict.reason


def test_recursive_schema():
    tree = {"type": "object", "additionalProperties": {"$ref": "#"}}
    assert _judge(JsonSchemaVerifier(schema=tree), '{"a":' * 60 + "{}" + "}" * 60).passed
    assert "could not be finished" in _judge(JsonSchemaVerifier(schema={"$ref": "#"}), "1").reason


def test_references_are_never_fetched():
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    assert "could not be finished" in _judge(JsonSchemaVerifier(schema=schema), "1").reason


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text(hostile):
    check_hostile(JsonSchemaVerifier(schema=SCHEMA), STEP, HOSTILE[hostile])
    check_hostile(PydanticVerifier(model=Order), STEP, HOSTILE[hostile])


def test_conformance():
    for verifier in (JsonSchemaVerifier(schema=SCHEMA), PydanticVerifier(model=Order)):
        check_verifier(verifier, STEP, passing='{"n": 3}', failing='{"n": "x"}')


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: JsonSchemaVerifier(schema={"type": "nothing"}), "schema is not a JSON Schema"),
        (lambda: JsonSchemaVerifier(schema={"type": {1, 2}}), "schema is not a JSON Schema"),
        (lambda: JsonSchemaVerifier(schema={}, seconds=0), "seconds is 0"),
        (lambda: JsonSchemaVerifier(schema={}, name=""), "name is ''"),
        (lambda: PydanticVerifier(model=Order(n=1)), "give the class"),
        (lambda: PydanticVerifier(model=type("Plain", (), {})), "give a Pydantic model"),
    ],
)
def test_settings_fail_at_once(make, told):
    with pytest.raises(ConfigError, match=told):
        make()
