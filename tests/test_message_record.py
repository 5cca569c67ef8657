"""What LangChain's messages become: a step's record, an answer's text, and the tokens that they cost."""

import json
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, LLMResult

from rfx_agent import Usage
from rfx_agent.adapters.reported import Reported
from rfx_agent.adapters.texts import as_text, messages_of, step_of, told
from rfx_agent.samplers.chat import ended, rollout_of, text_of, usage_of
from rfx_agent.samplers.usage import MOST_UNSEEN, believed

URL, RAW = "https://example.org/secret", "c2VjcmV0"
TEXT: Any = {"type": "text", "text": "What is it?"}
STAND_INS: dict[str, tuple[Any, str | None]] = {
    "v1 video by url": ({"type": "video", "url": URL}, "[video]"),
    "v1 video": ({"type": "video", "base64": RAW, "mime_type": "video/mp4"}, "[video]"),
    "v1 audio by url": ({"type": "audio", "url": URL}, "[audio]"),
    "v1 pdf by url": ({"type": "file", "url": URL, "mime_type": "application/pdf"}, "[file]"),
    "v1 image by id": ({"type": "image", "file_id": "secret"}, "[image]"),
    "v1 text": ({"type": "text-plain", "text": "notes", "mime_type": "text/plain"}, "notes"),
    "v1 non-standard": ({"type": "non_standard", "value": {"secret": 1}}, "[non_standard]"),
    "v1 reasoning": ({"type": "reasoning", "reasoning": "secret"}, None),
    "v0 text file": ({"type": "file", "source_type": "text", "text": "notes"}, "notes"),
    "v0 image by id": ({"type": "image", "source_type": "id", "id": "secret"}, "[image]"),
    "gemini video": ({"type": "media", "file_uri": "gs://secret", "mime_type": "video/mp4"}, "[video]"),
    "gemini pdf": ({"type": "media", "data": RAW, "mime_type": "application/pdf"}, "[application]"),
    "gemini media without a kind": ({"type": "media", "file_uri": "gs://secret"}, "[media]"),
    "anthropic pdf by url": ({"type": "document", "source": {"type": "url", "url": URL}}, "[document]"),
    "anthropic thinking": ({"type": "thinking", "thinking": "secret", "signature": "s"}, None),
    "anthropic search": ({"type": "search_result", "source": URL, "title": "secret"}, "[search_result]"),
    "bedrock text": ({"text": "notes"}, "notes"),
    "bedrock cache": ({"cachePoint": {"type": "default"}}, None),
    "bedrock document": ({"document": {"format": "pdf", "name": "secret", "source": {"bytes": b"x"}}}, "[document]"),
    "bedrock video": ({"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://secret"}}}}, "[video]"),
    "bedrock thoughts": ({"reasoningContent": {"reasoningText": {"text": "secret"}}}, None),
    "mistral pdf": ({"type": "document_url", "document_url": URL}, "[document_url]"),
    "unknown": ({"type": "holo_gram", "x": {"secret": [float("nan"), object()]}}, "[holo_gram]"),
    "unknown, no name": ({"type": f"see {URL}", "x": 1}, "[block]"),
    "a type that is none": ({"type": 7, "x": "secret"}, "[block]"),
    "empty": ({}, "[block]"),
    "text None": ({"type": "text", "text": None}, ""),
    "text of another kind": ({"type": "text", "text": ["secret"]}, ""),
}
KEPT: dict[str, tuple[Any, Any]] = {
    "image by url": ({"type": "image", "url": URL}, {"type": "image_url", "image_url": {"url": URL}}),
    "anthropic image by url": (
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "image_url", "image_url": {"url": URL}},
    ),
    "anthropic image": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": RAW}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RAW}"}},
    ),
    "bedrock image": (
        {"image": {"format": "png", "source": {"bytes": b"secret"}}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RAW}"}},
    ),
    "responses image": ({"type": "input_image", "image_url": URL}, {"type": "image_url", "image_url": {"url": URL}}),
    "audio": (
        {"type": "audio", "base64": RAW, "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": RAW, "format": "wav"}},
    ),
}
VIDEO = STAND_INS["v1 video by url"][0]


def in_each_role(block: Any) -> list[BaseMessage]:
    return [
        HumanMessage([block, TEXT]),
        SystemMessage([block, TEXT]),
        AIMessage([block, TEXT]),
        ToolMessage([block, TEXT], tool_call_id="1"),
    ]


@pytest.mark.parametrize(("block", "text"), STAND_INS.values(), ids=STAND_INS)
def test_a_block_that_openai_lacks_leaves_its_kind_and_nothing_else(block: Any, text: str | None) -> None:
    given = in_each_role(block)
    before = [m.model_copy(deep=True) for m in given] if "object" not in str(block) else given
    for made in messages_of(given):
        assert made["content"] == "\n".join(x for x in (text, "What is it?") if x is not None)
        assert "secret" not in json.dumps(made)
        assert RAW not in json.dumps(made)
    assert given == before


@pytest.mark.parametrize(("block", "kept"), KEPT.values(), ids=KEPT)
def test_a_picture_that_openai_knows_is_kept_beside_a_block_that_it_lacks(block: Any, kept: Any) -> None:
    (made,) = messages_of([HumanMessage([block, VIDEO, TEXT])])
    assert made["content"] == [kept, {"type": "text", "text": "[video]"}, TEXT]


def test_tool_calls_and_their_results_are_kept() -> None:
    call: Any = {"name": "look_up", "args": {"key": "a"}, "id": "1"}
    asked, found = messages_of([AIMessage([VIDEO], tool_calls=[call]), ToolMessage([VIDEO, TEXT], tool_call_id="1")])
    assert (asked["role"], asked["content"]) == ("assistant", "[video]")
    assert asked["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"key": "a"}'}
    assert (found["role"], found["tool_call_id"], found["content"]) == ("tool", "1", "[video]\nWhat is it?")


class Own(BaseMessage):
    type: str = "own"


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (FunctionMessage("7", name="f"), "function"),
        (ChatMessage("7", role="critic"), "critic"),
        (RemoveMessage(id="1"), "user"),
        (Own("7"), "user"),
        (Own([VIDEO, "7"]), "user"),
        (AIMessageChunk([VIDEO, "7"]), "assistant"),
    ],
)
def test_a_message_of_any_class_is_recorded(message: BaseMessage, role: str) -> None:
    (made,) = messages_of([message])
    assert made["role"] == role
    assert made["content"] in ("7", "[video]\n7") or isinstance(message, RemoveMessage)


def test_arguments_that_are_no_json_are_recorded() -> None:
    message = AIMessage("", tool_calls=[{"name": "f", "args": {"x": object()}, "id": None}])
    (made,) = messages_of([message])
    assert made["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize("value", [[("a", "b"), ("c", "d")], [("nobody", "said this")]])
def test_pairs_that_only_look_like_messages_are_a_text(value: Any) -> None:
    assert step_of(value).messages[0]["role"] == "user"
    assert told(value, "more") is None


def test_what_no_json_says_is_read_as_text() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert as_text({"x": b"\xff"}) == "{'x': b'\\xff'}"
    assert as_text(circle) == "[[...]]"
    assert as_text({"x": "\ud800"})


def test_an_addition_stands_behind_blocks_of_any_kind() -> None:
    message = HumanMessage([VIDEO, {"cachePoint": {"type": "default"}}])
    (more,) = told([message], "Try again.")
    assert more.content == [*message.content, {"type": "text", "text": "Try again."}]
    assert len(message.content) == 2
    assert messages_of([more])[0]["content"] == "[video]\nTry again."


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Answer: 4", "Answer: 4"),
        ([text("I checked that."), text("Answer: 4")], "I checked that.\nAnswer: 4"),
        (["I checked that.", "Answer: 4"], "I checked that.\nAnswer: 4"),
        ([text("I checked that.\n"), text("Answer: 4")], "I checked that.\nAnswer: 4"),
        ([text("The ans", index=0), text("wer: 4", index=0)], "The answer: 4"),
        ([text("I checked.", index=0), text("Answer: 4", index=1)], "I checked.\nAnswer: 4"),
        ([text("It is "), text("4", citations=[{"cited_text": "x"}]), text(" metres")], "It is 4 metres"),
        ([text("I look."), {"type": "server_tool_use", "id": "1"}, text("Answer: 4")], "I look.\nAnswer: 4"),
        ([{"type": "thinking", "thinking": "5?"}, text("Answer: 4")], "Answer: 4"),
        ([{"type": "reasoning", "summary": []}, {"type": "output_text", "text": "Answer: 4"}], "Answer: 4"),
        ([{"type": "thinking", "thinking": "5?"}], ""),
        (["The ans", text("wer: 4", extras={"signature": "s"})], "The answer: 4"),
        ([text("Answer: 4"), text("")], "Answer: 4"),
        ([{"text": "Answer: 4"}], "Answer: 4"),
        ([{"type": "image_url", "image_url": {"url": URL}}, text("4")], "4"),
        ([], ""),
    ],
)
def test_the_text_of_an_answer(content: Any, said: str) -> None:
    message = AIMessage(content)
    assert text_of(message) == said
    assert as_text(message) == rollout_of(message).text == said


def test_chunks_of_a_stream_are_one_text() -> None:
    message = AIMessageChunk([text("The ans")]) + AIMessageChunk([text("wer: 4")])
    assert text_of(message) == "The answer: 4"


LONG = "word " * 300
ESTIMATE = 500
MARKS = 8  # tokens that a chat template puts around one message and before the answer


@pytest.mark.parametrize(
    "given",
    [
        None, {}, [], "many", 7, {"output_tokens": 0}, {"output_tokens": -300}, {"output_tokens": None},
        {"output_tokens": True}, {"output_tokens": float("nan")}, {"output_tokens": float("inf")},
        {"output_tokens": "many"}, {"output_tokens": [300]}, {"output_tokens": "-3"}, {"total_tokens": 0},
    ],
)  # fmt: skip
def test_tokens_that_nobody_counted_are_estimated(given: Any) -> None:
    message = AIMessage(LONG)
    message.usage_metadata = given
    assert usage_of(message, prompt=[HumanMessage("What is it?")]) == Usage(4 + MARKS, ESTIMATE, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"usage_metadata": {"input_tokens": 12, "output_tokens": 310, "total_tokens": 322}},
        {"response_metadata": {"token_usage": {"prompt_tokens": 12, "completion_tokens": 310}}},
        {"response_metadata": {"token_usage": {"prompt_tokens": "12", "completion_tokens": 310.0}}},
        {"response_metadata": {"usage": {"input_tokens": 12, "output_tokens": 310}}},
        {"response_metadata": {"usage": {"inputTokens": 12, "outputTokens": 310}}},
        {"response_metadata": {"prompt_eval_count": 12, "eval_count": 310}},
        {"response_metadata": {"token_usage": {"prompt_tokens": 12, "total_tokens": 322}}},
    ],
)
def test_tokens_are_read_wherever_they_stand(given: Any) -> None:
    assert usage_of(AIMessage(LONG, **given), prompt="?") == Usage(12, 310, 1)


def counted(output: int, content: Any = LONG, read: int = 10, **details: int) -> AIMessage:
    message = AIMessage(content)
    used: Any = {"input_tokens": read, "output_tokens": output, "total_tokens": output + read}
    message.usage_metadata = used | ({"output_token_details": details} if details else {})
    return message


@pytest.mark.parametrize(
    ("message", "cap", "tokens"),
    [
        (counted(10**18), 512, 512),
        (counted(10**18), None, len(LONG)),
        (counted(10**9, reasoning=10**9), 512, 512),
        (counted(1_200), 512, 1_200),  # a server that does not honour a cap wrote that much
        (counted(4_000, "42", reasoning=3_900), 512, 512),  # thoughts count under it
        (counted(4_000, "42", audio=3_900), 512, 4_000),  # which sounds do not
        (counted(1, "word " * 4_000), 512, 6_667),  # too few for what is seen
        (counted(40_000, "42"), None, 40_000),  # thoughts that nobody shows
        (counted(1_290, [{"type": "image_url", "image_url": {"url": RAW}}]), 512, 1_290),
        (counted(300, "42"), 512, 300),
    ],
)
def test_a_count_is_believed_as_far_as_it_can_be_true(message: AIMessage, cap: int | None, tokens: int) -> None:
    assert usage_of(message, cap=cap).completion_tokens == tokens


def test_so_is_the_count_of_the_prompt() -> None:
    picture = HumanMessage([KEPT["image by url"][0], TEXT])
    assert usage_of(counted(1, read=10**18), prompt="What is it?").prompt_tokens == 4 + MARKS  # as if nobody counted
    assert usage_of(counted(1, read=900_000), prompt=[picture]).prompt_tokens == 900_000
    assert usage_of(counted(1, read=20_000), prompt="What is it?").prompt_tokens == 20_000  # with tools
    assert usage_of(counted(1, read=10**18)).prompt_tokens == MOST_UNSEEN
    assert usage_of(AIMessage("42"), prompt=[picture]).prompt_tokens > 500


def test_an_empty_answer_costs_something_and_one_that_thought_to_its_cap_costs_that() -> None:
    assert usage_of(AIMessage("")).completion_tokens == 1
    assert usage_of(AIMessage("", response_metadata={"finish_reason": "length"}), cap=300).completion_tokens == 300
    call: Any = {"name": "look_up", "args": {"key": "a" * 300}, "id": "1"}
    assert usage_of(AIMessage("", tool_calls=[call])).completion_tokens > 100
    thought = AIMessage([{"type": "thinking", "thinking": "t" * 300}, text("4")])
    assert usage_of(thought).completion_tokens > 100
    assert believed(5, 10) == 5


def test_models_inside_a_run_are_charged_for_what_they_do_not_report() -> None:
    reported, run = Reported(), uuid4()
    reported.on_chat_model_start({}, [[HumanMessage("What is it?")]], run_id=run)
    reported.on_llm_end(LLMResult(generations=[[ChatGeneration(message=AIMessage(LONG))]]), run_id=run)
    assert reported.usage() == Usage(4 + MARKS, ESTIMATE, 1)
    reported.on_llm_error(ValueError(), run_id=uuid4())  # of a call that nobody heard the beginning of
    assert reported.usage() == Usage(4 + MARKS, ESTIMATE, 2)


def failed(status: int | None) -> Exception:
    error = ConnectionError("dropped") if status is None else ValueError("no")
    error.status_code = status  # type: ignore[attr-defined]  # as an SDK's own has it
    return error


@pytest.mark.parametrize(
    ("status", "lost"),
    [(None, 1), (408, 1), (500, 1), (502, 1), (504, 1), (524, 1)] + [(x, 0) for x in (400, 401, 429, 503, 529)],
)
@pytest.mark.parametrize("own", [None, 300])
def test_a_model_call_that_may_have_been_worked_on_is_charged_its_cap(
    status: int | None, lost: int, own: int | None
) -> None:
    reported, run = Reported(), uuid4()
    reported.cap = 64
    reported.on_chat_model_start({}, [[HumanMessage("What is it?")]], run_id=run, invocation_params={"max_tokens": own})
    reported.on_llm_error(failed(status), run_id=run)
    assert reported.usage() == Usage((4 + MARKS) * lost, (own or 64) * lost, 1)
    assert reported.usage(lost=False) == Usage(calls=1)
    assert reported.lost == lost


def test_a_model_call_that_gave_nothing_is_charged_its_cap_too() -> None:
    reported, run = Reported(), uuid4()
    reported.cap = 64
    reported.on_chat_model_start({}, [[HumanMessage("What is it?")]], run_id=run)
    reported.on_llm_end(LLMResult(generations=[[]]), run_id=run)
    assert (reported.usage(), reported.lost) == (Usage(4 + MARKS, 64, 1), 1)


def test_what_each_choice_of_one_response_says_of_all_of_them_is_counted_once() -> None:
    used: Any = {"input_tokens": 9, "output_tokens": 30, "total_tokens": 39}
    reported, run = Reported(), uuid4()
    choices = [ChatGeneration(message=AIMessage(text, usage_metadata=used)) for text in ("41", "42", "43")]
    reported.on_llm_end(LLMResult(generations=[choices]), run_id=run)
    assert reported.usage() == Usage(9, 30, 1)


def test_a_character_of_chinese_is_a_token() -> None:
    assert usage_of(AIMessage("六乘以七等于四十二")).completion_tokens == 9


@pytest.mark.parametrize(
    "told",
    [
        "n/a", 3, True, [], [None], [{}], [{"token": None}], {"content": "x"}, {"content": {"a": 1}}, {"content": [3]},
        {"content": [{"logprob": -1}]}, {"content": [{"token": "42", "logprob": -0.1, "top_logprobs": {"42": -0.1}}]},
        {"content": [{"token": "42", "top_logprobs": [{"token": "42", "logprob": "x"}]}]},
        {"content": [{"token": "42", "top_logprobs": [{"token": "42", "logprob": float("nan")}]}]},
        {"tokens": ["42"], "top_logprobs": [{"42": -0.1}]}, [{"token": "4", "top_logprobs": TEXT}],
    ],
)  # fmt: skip
def test_log_probabilities_of_an_odd_form_are_no_table(told: Any) -> None:
    rollout = rollout_of(AIMessage("42", response_metadata={"logprobs": told}))
    assert (rollout.text, rollout.logprobs) == ("42", None)


@pytest.mark.parametrize("listed", [True, False])
def test_log_probabilities_of_a_known_form_are_a_table(listed: bool) -> None:
    entries = [{"token": "42", "logprob": -0.1, "top_logprobs": [{"token": "42", "logprob": -0.1}]}]
    rollout = rollout_of(AIMessage("42", response_metadata={"logprobs": entries if listed else {"content": entries}}))
    assert (rollout.tokens, rollout.logprobs is not None) == (("42",), True)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (AIMessage("", additional_kwargs={"refusal": "no"}), "refusal"),
        (AIMessage([{"type": "refusal", "refusal": "no"}]), "refusal"),
        (AIMessage("", response_metadata={"prompt_feedback": {"block_reason": "SAFETY"}}), "prohibited_content"),
        (AIMessage("4", response_metadata={"stopReason": "max_tokens"}), "max_tokens"),
        (AIMessage("4", response_metadata={"status": "incomplete"}), "incomplete"),
        (AIMessage("4", response_metadata={"finish_reason": 7}), None),
        (AIMessage("4", response_metadata={"finish_reason": "x" * 10_000}), "x" * 64),
    ],
)
def test_how_an_answer_ended(message: AIMessage, reason: str | None) -> None:
    assert ended(message) == reason
