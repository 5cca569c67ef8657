"""What a model thought is taken off once, for every reader."""

from __future__ import annotations

import pytest

from rfx_agent.errors import ToolInputError
from rfx_agent.evidence.kinds import kind_of
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.thinking import Said, after_thinking
from rfx_agent.tools import ProgramTool
from rfx_agent.verifiers import AgreementVerifier, ExactVerifier, JsonSchemaVerifier, MathVerifier, RegexVerifier

STEP = Step.of("What is 3 + 5?", expected="8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is 7.", "It is 7."),
        ("<think>8?</think>7", "7"),
        ("<THINK>8?</Think >7", "7"),
        ("<thinking>8?</thinking>7", "7"),
        ('<thinking type="x">8?</thinking>7', "7"),
        ("<thought>8?</thought>7", "7"),
        ("<reasoning>8?</reasoning>7", "7"),
        ("<seed:think>8?</seed:think>7", "7"),
        ("[THINK]8?[/THINK]7", "7"),
        ("\u25c1think\u25b78?\u25c1/think\u25b77", "7"),
        ("<|begin_of_thought|>8?<|end_of_thought|><|begin_of_solution|>7<|end_of_solution|>", "7"),
        ("<|START_THINKING|>8?<|END_THINKING|><|START_RESPONSE|>7<|END_RESPONSE|>", "7"),
        ("<|channel>thought\n8?<channel|>7<turn|>", "7"),
        ("<unused94>thought\n8?<unused95>7", "7"),
        ("<|im_start|>think\n8?<|im_start|>answer\n7", "\n7"),
        ("<|channel|>analysis<|message|>8?<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>", "7"),
        ("<|channel|>analysis<|message|>8?<|end|><|channel|>commentary<|message|>9<|channel|>final<|message|>7", "7"),
        ("<|start|>assistant<|channel|>final<|message|>7", "7"),
        ("analysis8 or so?assistantfinal7", "7"),
        ("Answer: 8\n</think>\n7", "\n7"),  # the template opened it
        ("so </think> is a tag. Answer: 8 </think>7", "7"),
        ("One. <think>8?</think>Two. <think>9?</think>Three.", "One. Two. Three."),
        ("<think>a <think> within</think>7", "7"),
        ("<think></think>7", "7"),
        ("Write `<think>` first. 7", "Write `<think>` first. 7"),  # quoted
        ("The <think> tag opens it.", "The <think> tag opens it."),  # named in passing
        ("a < b and [1]", "a < b and [1]"),
        ("<mm:think>8?</mm:think>7", "7"),
        ("<reasoning_content>8?</reasoning_content>7", "7"),
        ("<chain-of-thought>8?</chain-of-thought>7", "7"),
        ("[REASONING]8?[/REASONING]7", "7"),
        ("<|start_of_thinking|>8?<|end_of_thinking|>7", "7"),
        ("<|channel|>analysis<|message|>8?<|end|><|channel|>final <|constrain|>json<|message|>7", "7"),
        ("7<|im_end|>", "7"),
        ("7</s>\n", "7"),
        ("7<|eot_id|><|endoftext|>", "7"),
        ("<|im_start|>assistant\n<think>8?</think>7<|im_end|>", "7"),
        ("<start_of_turn>model\n7<end_of_turn>", "7"),
        ("The mark <|im_end|> ends a turn.", "The mark <|im_end|> ends a turn."),
    ],
)  # fmt: skip
def test_what_follows_the_thinking(text, said):
    assert after_thinking(text) == Said(said)
    assert Rollout(text).said == said


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nAnswer: 8",
        "Sure!\n<think>\nAnswer: 8\nBut",
        "Sure. <think>Answer: 8",
        "<think>8</think>Answer: 8\n<think>or is it",
        "[THINK]Answer: 8",
        "<|channel|>analysis<|message|>Answer: 8",
        "<|channel|>analysis<|message|>Answer: 8<|end|>",
        "<|channel>thought\nAnswer: 8",
        "<reasoning_content>Answer: 8",
        "<cot>\nAnswer: 8",
        "<|im_start|>assistant\n<think>Answer: 8<|im_end|>",
    ],
)
def test_thinking_that_was_never_closed_says_nothing(text):
    assert after_thinking(text) == Said("", open=True)
    verdicts = [
        verifier.verify(STEP, Rollout(text), peers=[Rollout(text)] * 3)
        for verifier in (
            ExactVerifier(),
            MathVerifier(),
            RegexVerifier(r"Answer: 8"),
            JsonSchemaVerifier(True),
            AgreementVerifier(),
        )
    ]
    assert not any(verdict.passed for verdict in verdicts)
    for verdict in verdicts:
        assert kind_of(Rollout(text, finish_reason="stop", verdict=verdict)) == "cut"
    with pytest.raises(ToolInputError, match="while the model thinks"):
        ProgramTool().parse(f"{text}\n```python\nanswer = 8\n```")


def test_a_pass_is_no_failure_whatever_its_thinking():
    assert kind_of(Rollout("<think>", verdict=Verdict(True))) is None


def test_no_reader_takes_a_draft_for_the_answer():
    draft = 'Answer: 8, {"n": 8}\n```python\nanswer = 8\n```'
    for text in (
        f"<think>{draft}</think>It is seven.",
        f"{draft}</think>It is seven.",
        f"<|channel|>analysis<|message|>{draft}<|end|><|start|>assistant<|channel|>final<|message|>It is seven.",
    ):
        rollout = Rollout(text)
        for verifier in (ExactVerifier(), MathVerifier(), RegexVerifier("8"), JsonSchemaVerifier({"required": ["n"]})):
            assert not verifier.verify(STEP, rollout).passed
        assert AgreementVerifier().verify(STEP, rollout, peers=[rollout]).answer == "it is seven"
        with pytest.raises(ToolInputError, match="no Python code"):
            ProgramTool().parse(text)


def test_what_follows_is_judged():
    text = "<think>Answer: 7\n```python\nanswer = 7\n```</think>"
    assert MathVerifier().verify(STEP, Rollout(text + "Answer: 8")).passed
    assert ExactVerifier().verify(STEP, Rollout(text + "8")).passed
    assert JsonSchemaVerifier({"type": "integer"}).verify(STEP, Rollout(text + "8")).passed
    assert ProgramTool().parse(text + "```python\nanswer = 8\n```") == "answer = 8"


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 50_000,
        "</think>" * 50_000,
        "<|channel|>analysis" * 50_000,
        "a <think> b" * 50_000,
        "[<\u25c1" * 100_000,
        "</s>" * 100_000,
        "<|channel|>final" + "<|constrain|>" * 50_000,
    ],
)
def test_hostile_marks(text):
    after_thinking(text)
