"""The demo's parts without a model: problems, what is shown, and the two arms' accounting."""

import asyncio
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from rfx_agent.cli import options
from rfx_agent.cli.demo import demo_recovery, live_tasks, run_tasks
from rfx_agent.cli.options import Screen, plain, table
from rfx_agent.cli.problems import FAMILIES, Problem, problems, stated
from rfx_agent.cli.show import DemoView
from rfx_agent.fence import visible
from rfx_agent.testing import ScriptedSampler

NINE = Problem("sum", "What is 4 + 5?", "9")


def test_problems_come_from_their_seed_and_cover_every_family() -> None:
    assert problems(20, 3) == problems(20, 3) != problems(20, 4)
    assert [p.family for p in problems(10, 3)] == list(FAMILIES)


@pytest.mark.parametrize("seed", range(40))
def test_a_problems_answer_is_right(seed: int) -> None:
    for problem in problems(10, seed):
        numbers = [int(x) for x in __import__("re").findall(r"\d+", problem.question)]
        match problem.family:
            case "product":
                assert int(problem.answer) == numbers[0] * numbers[1]
            case "sum":
                assert int(problem.answer) == sum(numbers)
            case "remainder":
                assert int(problem.answer) == numbers[0] % numbers[1]
            case "equation":
                left, right = problem.question.removeprefix("Solve for x: ").split(". ")[0].split(" = ")
                x = int(problem.answer)
                assert eval(left, {"x": x}) == eval(right, {"x": x})  # noqa: S307  # our own text
            case "mixed":
                assert int(problem.answer) == eval(problem.question[8:-1])  # noqa: S307  # our own text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"838 * 851 = 713,138, so \boxed{713138}", "713138"),
        ("838 times 851 = 713,138.", "713,138"),
        (r"It is \boxed{\text{Tuesday}}.", "Tuesday"),
        ("x = -7", "-7"),
        ("Answer: 5 apples", "5"),
        ("I do not know", None),
    ],
)
def test_the_stated_answer_is_found_in_any_dress(text: str, answer: str | None) -> None:
    assert stated(text) == answer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07", "a [31mb"),  # no escape reaches the terminal
        ("[bold]x[/]", "[bold]x[/]"),
        ("a\n\n b", "a b"),
        ("\u202egnol", "gnol"),  # a right-to-left override is no printable character
        ("x" * 40, "x" * 23 + "…"),
    ],
)
def test_model_output_is_plain_on_the_terminal(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    "text", ["[/] [bold]a[/bold]", "a\x1b[31mb\x9b1m", "a\u202eb", ":smile: 1.5", "[link=http://a]b[/link]"]
)
def test_what_is_printed_is_text_and_nothing_else(text: str) -> None:
    out = io.StringIO()
    screen = Screen(file=out, width=200)
    made = table(text, "", text)
    made.add_row(text, text)
    screen.print(text)
    screen.print(made)
    assert out.getvalue().count(visible(text)) == 5
    assert not set(out.getvalue()) & set("\x1b\x9b\u202e")


def test_no_command_prints_past_the_screen() -> None:
    for path in Path(options.__file__).parent.glob("*.py"):
        assert path.name == "options.py" or not re.search(r"(?<!\w)Console\(", path.read_text()), path.name


def test_both_arms_start_from_the_same_draw_and_get_the_same_tokens() -> None:
    # One failing draw, a program that computes; then retry draws until its tokens are spent.
    texts = ["Answer: 1", "```python\nanswer = 4 + 5\n```", *["Answer: 8"] * 99]
    recovery = demo_recovery(ScriptedSampler(texts), seed=1)
    seen: list[bool] = []
    report = asyncio.run(
        run_tasks(
            live_tasks(recovery, [NINE]), concurrency=1, on_done=lambda _, failure: seen.append(failure is not None)
        )
    )
    figures = report.as_dict()
    assert seen == [True]
    assert (figures["recovery"]["rescued"], figures["retry"]["rescued"]) == (1, 0)
    assert figures["recovery"]["routes"] == {"tool": 1}
    assert figures["retry"]["tokens"] >= figures["recovery"]["tokens"]
    failure = report.failures[0]
    assert failure.retry.rollouts[0] == failure.recovery.rollouts[0]
    assert [x.text for x in failure.recovery.rollouts] == ["Answer: 1", "9"]
    assert {x.text for x in failure.retry.rollouts[1:]} == {"Answer: 8"}
    assert figures["retry"]["attempts"] == len(failure.retry.rollouts)
    assert failure.retry.ledger.spent.tokens - failure.retry.rollouts[-1].usage.tokens < figures["recovery"]["tokens"]


def test_a_failure_is_shown_without_obeying_the_model() -> None:
    texts = ["Answer: [red]\x1b]0;owned\x07"] * 4 + ["```python\nanswer = 9\n```"] + ["Answer: 8"] * 99
    out = io.StringIO()
    view = DemoView(Console(file=out, width=80))
    with view.running("m", [NINE], replay=False):
        report = asyncio.run(
            run_tasks(
                live_tasks(demo_recovery(ScriptedSampler(texts), seed=1), [NINE]), concurrency=1, on_done=view.done
            )
        )
    view.summary(report, 1.0)
    shown = out.getvalue()
    assert "\x1b" not in shown
    assert "tool" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
