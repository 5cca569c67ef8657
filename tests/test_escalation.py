"""What a person is shown and may reply: LangChain's shapes, inboxes' dialects, and Markdown that no model can write."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import TypeAdapter

from rfx_agent import Rollout, Step, Verdict
from rfx_agent.bill import Operation
from rfx_agent.budgets.step import Ledger, RetryBudget
from rfx_agent.case import Ask, Attempt, Case, Decision, Diagnosis
from rfx_agent.errors import EscalationError
from rfx_agent.escalation import ACTION, apply_reply, payload
from rfx_agent.escalation.markdown import block, span, words
from rfx_agent.records import Agreement, Spend

FEATURES = {"spread": 0.5, "concentration": 2.69, "logit_dispersion": -0.8}
Z = {"spread": 0.01, "concentration": 1.2, "logit_dispersion": -0.11}


def case_of(
    *answers: str | None,
    question: Any = "What is 6 times 7?",
    sentence: str = "Nothing is left that could help.",
    caveat: str | None = None,
    calibration: str = "published",
    deadline: float | None = 1_060.0,
    default: Any = "reject",
    features: bool = True,
) -> Case:
    rollouts = tuple(
        Rollout(f"I think {a}", id=f"r{i}", verdict=Verdict(False, answer=a)) for i, a in enumerate(answers)
    )
    found = (FEATURES, Z) if features else (None, None)
    diagnosis = Diagnosis(
        "s", "two_model", *found, calibration, True, () if caveat is None else (caveat,), len(rollouts), 0,
        Agreement(len(rollouts), 1, 1.0, 0.0), {}, {}, {},
    )  # fmt: skip
    decision = Decision("escalate", "human", "structural", "out_of_reach", sentence, "p", "two_model", *found)
    return Case(
        step=Step(
            ({"role": "system", "content": "Be brief."}, {"role": "user", "content": question}), expected="SECRET"
        ),
        ledger=Ledger(RetryBudget(), Spend(samples=4, tokens=1_234, usd=0.0125, seconds=2.0)),
        rollouts=rollouts,
        attempts=(Attempt("retry", 3, 3), Attempt("tool", 1, 0, misses=1)),
        diagnosis=diagnosis,
        decisions=(decision,),
        ask=Ask(1_000.0, deadline, default),
    )


def described(case: Case) -> str:
    return str(payload(case)["action_requests"][0]["description"])


# --- the page


def test_the_page_says_everything_that_a_person_needs() -> None:
    page = described(case_of("40", "40", None, "44"))
    for line in (
        "**A reasoning step failed and needs you.** Nothing is left that could help.",
        "```text\nWhat is 6 times 7?\n```",
        "| `40` | 2 | retry |",
        "| `I think None` | 1 | retry |",  # no answer was found in it
        "- 0 of 4 plain draws passed",
        "- concentration 2.69, 1.2 sd above the mean",
        "- logit dispersion -0.80, 0.1 sd below the mean",
        "- spread 0.50, at the mean",
        "against the failures of `published`",
        "**Tried:** retry, 3 of 3 came back; tool, 0 of 1 came back and 1 could not be judged.",
        "**Spent:** 4 samples, 1,234 tokens, 2.0 s, USD 0.0125.",
        "- **approve**: `40` stands as the answer",
        "- **reject**: no answer stands; your message is kept as the reason",
        "**Without a reply by 1970-01-01T00:17:40+00:00:** reject, no answer stands.",
    ):
        assert line in page
    assert "SECRET" not in json.dumps(payload(case_of("40")))


def test_the_page_says_which_remedy_the_tokens_went_to() -> None:
    paid = (Operation("verify", Spend(tokens=34)), Operation("sample", Spend(tokens=1_200), "delegate_large"))
    page = described(replace(case_of("40"), operations=paid))
    assert "2.0 s, USD 0.0125; tokens by remedy: first answer 34, delegate large 1,200." in page


def test_the_page_without_features_answers_or_deadline() -> None:
    page = described(case_of(features=False, deadline=None))
    assert "**What came back**: nothing." in page
    assert "- trajectory features: not available" in page
    assert "approve" not in page
    assert "Without a reply" not in page


def test_by_default_nothing_is_approved_where_there_is_nothing() -> None:
    assert "reject, no answer stands" in described(case_of(default="approve"))
    assert "approve, the proposed answer stands" in described(case_of("40", default="approve"))


def test_many_answers_and_a_long_question_are_cut_and_say_so() -> None:
    page = described(case_of(*map(str, range(30)), question="q" * 5_000))
    assert "and 20 more different answers." in page
    assert "(3,500 more characters)" in page
    assert len(page) < 6_000


def test_a_question_in_parts_is_shown_as_text() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    assert "```text\nWhat is this?\n[image_url]\n```" in described(case_of("40", question=parts))


def test_a_question_that_is_asked_again_says_why() -> None:
    again = payload(case_of("40"), error="decisions.0: <b>no</b>")
    page = again["action_requests"][0]["description"]
    assert page.startswith("**Your last reply did not fit.** decisions.0: `<b>no</b>`\n\n**A reasoning step")
    assert again["error"] == "decisions.0: <b>no</b>"
    assert "error" not in payload(case_of("40"))


def failed(text: str, reason: str, **more: Any) -> Rollout:
    return Rollout(text, verdict=Verdict(False, reason=reason, **more))


def judged_case(*rollouts: Rollout) -> Case:
    named = tuple(replace(r, id=f"r{i}") for i, r in enumerate(rollouts))
    return replace(case_of(), rollouts=named)


ESSAY = "The capital is Lyon.\n\nIt lies on the Rhône, where the Saône joins it."


def test_texts_without_an_answer_are_shown_with_the_verifiers_reasons() -> None:
    case = judged_case(
        failed(f"<think>Paris? {'no ' * 500}</think>{ESSAY}", "no such capital"),
        failed("<think>Paris, or", "no such capital"),
        failed("Nice is \x1b[31mnice\x1b[0m.", "the text names `Nice`\x07"),
        failed("Lyon", "no such capital", answer="Lyon"),
    )
    page = described(case)
    for line in (
        "| 1 | `The capital is Lyon. It lies on the Rhô…` | 1 | retry | wrong |",
        "| 2 | (cut off while it thought) | 1 | retry | cut |",
        "| 3 | `Nice is nice.` | 1 | retry | wrong |",
        "| 4 | `Lyon` | 1 | retry | wrong |",
        f"Number 1 in full:\n\n```text\n{ESSAY}\n```",
        "- of 1, 2, 4: no such capital",
        "- of 3: `the text names 'Nice'`",
        "stands as the answer, number 4 above",
    ):
        assert line in page, line
    assert "Paris" not in page
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= 80
    asked = payload(case)
    assert [x["answer"] for x in asked["rfx"]["answers"]] == [
        " ".join(ESSAY.split()), None, "Nice is nice.", "Lyon"
    ]  # fmt: skip
    assert asked["rfx"]["reasons"] == [
        "r0, r1, r3: no such capital", "r2: the text names `Nice`"
    ]  # fmt: skip
    assert not any(c in json.dumps(asked, ensure_ascii=False) for c in ("\\u001b", "\x1b", "\\u0007"))


def test_a_long_answer_is_shown_with_its_end() -> None:
    page = described(judged_case(failed(f"First, {'so ' * 2_000}\nAnswer: 42", "it is not 41")))
    assert "characters left out" in page
    assert "Answer: 42\n```" in page


def test_what_is_proposed_says_something() -> None:
    case = judged_case(failed("<think>Paris", "cut"), failed("I say Lyon, and more.", "no"))
    asked = payload(case)
    assert asked["action_requests"][0]["args"] == {"answer": "I say Lyon, and more."}
    outcome = apply_reply(case, {"type": "approve"}, now=1_001.0).outcome
    assert outcome is not None
    assert outcome.text == "I say Lyon, and more."
    assert "(nothing) | 1 | retry | no answer |" in described(judged_case(failed(" ", "no")))
    nothing = payload(judged_case(failed("<think>Paris", "cut")))
    assert nothing["review_configs"][0]["allowed_decisions"] == ["edit", "reject", "respond"]


def test_words_of_other_scripts_are_left_whole() -> None:
    for answer in ("می\u200cخواهم", "👩\u200d🔬", "naïve"):
        assert payload(judged_case(failed(answer, "no", answer=answer)))["action_requests"][0]["args"] == {
            "answer": answer
        }
    turned = payload(judged_case(failed("x", "no", answer="evil\u202egpj.exe")))
    assert turned["action_requests"][0]["args"] == {"answer": "evilgpj.exe"}


# --- Markdown that no model can write

PIECES = [
    "```",
    "````",
    "`",
    "|",
    "#",
    "-",
    "1.",
    ">",
    "~~~",
    "===",
    "---",
    "$$",
    "\\",
    "**",
    "_",
    "~~",
    "&lt;",
    "<!--",
    "</code></pre>",
    "<img/src=x/onerror=alert(1)>",
    "![i](http://e.example/i.png)",
    "[a](javascript:alert(1))",
    "[r]:http://e.example",
    "http://e.example",
    "www.e.example",
    "a@e.example",
]
BREAKS = [
    "\n",
    "\n\n",
    "\r",
    "\u2028",
    "\x0b",
    "\x85",
    "\x00",
    "\u202e",
    "\u200b",
    "\ud800",
    "    ",
    "\n| a |\n| - |\n",
]
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(PIECES), st.sampled_from(PIECES).map("{} ".format), st.sampled_from(BREAKS), st.text(max_size=8)
    ),
    max_size=12,
).map("".join)
MARK = "ZQX"
PLAIN = {"text", "code_inline", "softbreak", "strong_open", "strong_close", "inline", "fence"}
PLAIN |= {f"{x}_{end}" for x in ("paragraph", "bullet_list", "list_item") for end in ("open", "close")}
PLAIN |= {f"{x}_{end}" for x in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")}


def tokens(page: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [t for top in parser.parse(page) for t in (top, *(top.children or ()))]


@settings(max_examples=300, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_text_becomes_structure(question: str, answer: str, sentence: str, other: str) -> None:
    benign = tokens(described(case_of("x", "y", caveat="x", calibration="x")))
    made = case_of(
        MARK + answer + MARK,
        "y" + other,
        question=MARK + question + MARK,
        sentence=sentence,
        caveat=other,
        calibration=other,
    )
    found = tokens(described(made))
    assert {t.type for t in found} <= PLAIN
    longer = sum(t.type == "text" and t.content in ("Number 1 in full:", "Number 2 in full:") for t in found)
    for kind in ("fence", "table_open", "tr_open", "td_open", "list_item_open", "paragraph_open"):
        own = longer if kind in ("fence", "paragraph_open") else 0  # a heading and a block for each long answer
        assert sum(t.type == kind for t in found) == sum(t.type == kind for t in benign) + own
    shown = "".join(t.content for t in found if t.type == "text")
    assert MARK not in shown  # the question and the answers stand in code, whole
    # A bare link is made of text by some renderers, after parsing.
    assert not any(sign in shown.lower() for sign in ("://", "www.", "@", "<", "$", "]"))


@settings(deadline=None)
@given(HOSTILE)
def test_code_keeps_the_text_and_nothing_leaves_it(text: str) -> None:
    assert [t.type for t in tokens(block(text, 500))] == ["fence"]
    assert [t.type for t in tokens(span(text))] == ["paragraph_open", "inline", "code_inline", "paragraph_close"]


def test_a_sentence_of_ours_stays_readable() -> None:
    assert words("It failed 3 of 4 times (75%): no route is left, budget 0.5 s.") == (
        "It failed 3 of 4 times (75%): no route is left, budget 0.5 s."
    )
    assert words("see www.e.example, tool_verify <b> e.example") == (
        "see `www.e.example,` `tool_verify` `<b>` `e.example`"
    )


# --- shapes


@pytest.mark.parametrize("case", [case_of("40"), case_of(), case_of("a" * 9_000)], ids=["answer", "none", "long"])
def test_the_request_is_langchains(case: Case) -> None:
    hitl = pytest.importorskip("langchain.agents.middleware.human_in_the_loop")
    asked = payload(case)
    assert json.loads(json.dumps(asked)) == asked
    checked = TypeAdapter(hitl.HITLRequest).validate_python(asked)
    (request,), (config,) = checked["action_requests"], checked["review_configs"]
    assert request["name"] == config["action_name"] == ACTION
    # An inbox makes a text field of each argument and shows the schema of an edit.
    assert all(isinstance(value, str) for value in request["args"].values())
    assert set(config["args_schema"]["properties"]) == set(request["args"])
    assert ("approve" in config["allowed_decisions"]) == bool(case.rollouts)


EDITED = {"name": ACTION, "args": {"answer": "42"}}
LANGCHAIN: list[dict[str, Any]] = [
    {"type": "approve"},
    {"type": "edit", "edited_action": EDITED},
    {"type": "reject", "message": "ask the vendor"},
    {"type": "reject"},
    {"type": "respond", "message": "it is 42"},
]


@pytest.mark.parametrize("decision", LANGCHAIN, ids=lambda d: str(d["type"]))
def test_langchains_replies_are_understood(decision: dict[str, Any]) -> None:
    hitl = pytest.importorskip("langchain.agents.middleware.human_in_the_loop")
    reply = TypeAdapter(hitl.HITLResponse).validate_python({"decisions": [decision]})
    outcome = apply_reply(case_of("40"), reply, now=1_001.0).outcome
    assert outcome is not None
    assert outcome.reason == f"human:{decision['type']}"
    assert apply_reply(case_of("40"), decision, now=1_001.0).outcome == outcome  # one decision, as per-call mode sends


@pytest.mark.parametrize(
    ("sent", "status", "text", "said"),
    [
        ({"type": "approve", "args": {"action": ACTION, "args": {"answer": "40"}}}, "human", "I think 40", ""),
        ({"type": "approve", "args": None}, "human", "I think 40", ""),
        ({"type": "edit", "args": {"action": ACTION, "args": {"answer": "42"}}}, "human", "42", ""),
        ({"type": "reject", "args": "ask the vendor"}, "rejected", None, "They said: ask the vendor"),
        ({"type": "ignore", "args": None}, "rejected", None, ""),
    ],
)
def test_the_agent_inboxs_dialect_is_understood(sent: Any, status: str, text: str | None, said: str) -> None:
    outcome = apply_reply(case_of("40"), {"decisions": [sent]}, now=1_001.0).outcome
    assert outcome is not None
    assert (outcome.status, outcome.text) == (status, text)
    assert said in outcome.sentence


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({"decisions": [{"type": "approve"}] * 2}, "decisions"),
        ({"type": "accept"}, "decisions.0"),
        ({"type": "approve", "mesage": "x"}, "mesage"),
        ({"type": "respond", "message": ""}, "message"),
        ({"type": "edit", "args": "42"}, "edited_action"),
        ({"type": "edit", "args": {"action": ACTION, "args": None}}, "args"),
        ({"type": "edit", "edited_action": {"name": "other", "args": {"answer": "42"}}}, "'other'"),
        ({"type": "edit", "edited_action": {"name": ACTION, "args": {}}}, "answer"),
        ({"type": "edit", "edited_action": {"name": ACTION, "args": {"answer": " "}}}, "blank"),
        (["approve"], "reply"),
    ],
)
def test_a_reply_that_does_not_fit_names_what_is_wrong(reply: Any, why: str) -> None:
    with pytest.raises(EscalationError, match=why):
        apply_reply(case_of("40"), reply, now=1_001.0)


@pytest.mark.parametrize(("value", "text"), [("42", "42"), (42, "42"), (True, "true"), (["é", 1], '["é", 1]')])
def test_an_edit_is_text_whatever_the_form_made_of_it(value: Any, text: str) -> None:
    reply = {"type": "edit", "edited_action": {"name": ACTION, "args": {"answer": value}}}
    outcome = apply_reply(case_of("40"), reply, now=1_001.0).outcome
    assert outcome is not None
    assert outcome.text == text


def test_nothing_can_be_approved_where_there_is_nothing() -> None:
    with pytest.raises(EscalationError, match="no candidate answer to approve"):
        apply_reply(case_of(), {"type": "approve"}, now=1_001.0)


@pytest.mark.parametrize(("default", "status"), [("approve", "human"), ("reject", "rejected")])
def test_no_reply_and_a_late_one_leave_it_to_the_default(default: Any, status: str) -> None:
    case = case_of("40", default=default)
    for reply, now in ((None, 1_001.0), ({"type": "respond", "message": "42"}, 1_061.0)):
        outcome = apply_reply(case, reply, now=now).outcome
        assert outcome is not None
        assert (outcome.status, outcome.reason) == (status, f"deadline:{default}")
    open_ended = replace(case, ask=replace(case.ask, deadline=None))  # type: ignore[type-var]
    assert apply_reply(open_ended, {"type": "approve"}, now=1e9).outcome.status == "human"  # type: ignore[union-attr]
