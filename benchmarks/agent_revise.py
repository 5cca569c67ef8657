"""What a revision rescues in an agent with a tool, beside a plain retry of its final answer: one JSON object.

The embedded model is a LangChain chat model that calls tools in Qwen's own format. ``create_agent`` gives it
``price_of_item``; it answers an order of two items with a bill in JSON. A Pydantic model checks the bill: fields,
items, quantities, prices and the total. What it says of a failure names the place and never the right value.

- ``--task sums``: large numbers, whose total the model seldom gets right.
- ``--task fields``: small numbers, and a field that the prompt asks for behind an example that lacks it.
- ``--task amounts``: large numbers, with the amount of each line, which helps the model to the total.

Each final answer that failed, of a run that called the tool, gets two attempts of each arm, through
``RecoverabilityMiddleware``. The run up to the failed answer is the same in both arms, word for word, and attempt i has
the same seed in both:

- ``retry``: the same request again;
- ``revise``: the request with the failed answer and what the check said of it, as a message of the user behind the
  tools' results.

A draw that calls tools is a failed attempt. Where both attempts failed and one of them called tools, the agent goes on
from there with no attempts left; ``passed_at_last`` counts the answer that comes of it too.

With ``--journal FILE`` each order is written down when it is done, and a run that starts again goes on from there.

    python benchmarks/agent_revise.py [--task fields] [--failures 40] [--minutes 30] [--journal agent_revise.jsonl]
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain.agents import create_agent
from langchain.agents.middleware.types import AgentMiddleware, ModelRequest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.errors import GraphRecursionError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rfx_agent import (
    LocalSampler,
    PydanticVerifier,
    RecoverabilityMiddleware,
    RetryBudget,
    Rollout,
    SampleRequest,
    Step,
    Unresolved,
)
from rfx_agent.policies import FixedPolicy
from rfx_agent.ports import Remedy
from rfx_agent.remedies import Retry, Revise

ARMS: dict[str, Remedy] = {"retry": Retry(), "revise": Revise()}
ATTEMPTS = 2
MOST_TOKENS = 120  # of one answer
MOST_STEPS = 8  # of the agent's graph: four calls of the model, with their tools
PRICES = {
    "candle": 3,
    "mug": 8,
    "scarf": 12,
    "plate": 5,
    "kettle": 27,
    "lamp": 34,
    "rope": 6,
    "pillow": 15,
    "basket": 11,
    "bucket": 4,
    "blanket": 22,
    "hammer": 17,
    "notebook": 2,
    "clock": 19,
    "teapot": 25,
    "brush": 7,
    "ladder": 45,
}
SYSTEM = (
    "You take orders of a shop. Call price_of_item for each ordered item. When you have every price, answer with the "
    "bill as JSON and nothing else. The bill of 2 pens at 3 euros and 4 cups at 5 euros is "
)
PLAIN = (
    '{"lines": [{"item": "pen", "quantity": 2, "price": 3}, {"item": "cup", "quantity": 4, "price": 5}], "total": 26}'
)
WORKED = PLAIN.replace('"price": 3', '"price": 3, "amount": 6').replace('"price": 5', '"price": 5, "amount": 20')
PROMPTS = {  # by task
    "sums": SYSTEM + PLAIN,
    "fields": f"{SYSTEM}{PLAIN}. Every bill names its currency too",
    "amounts": SYSTEM + WORKED,
}
FORCED = '<tool_call>\n{"name": "price_of_item", "arguments": {"name": "'
TOOLS = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@tool
def price_of_item(name: str) -> str:
    """The price of one item, in euros."""
    known = item_of(name)
    return f"There is no item {name!r}." if known is None else f"{known}: {PRICES[known]}"


def item_of(name: str) -> str | None:
    """The item that ``name`` means, in the singular or the plural."""
    word = name.strip().lower()
    return next((item for item in PRICES if word in (item, plural(item))), None)


def plural(item: str) -> str:
    return {"scarf": "scarves", "brush": "brushes"}.get(item, f"{item}s")


class LookUpFirst(AgentMiddleware[Any, Any, Any]):
    """Makes the agent call a tool before it answers; afterwards it is free to."""

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        first = isinstance(request.messages[-1], HumanMessage)
        return handler(request.override(tool_choice="price_of_item") if first else request)


class Chat(BaseChatModel):
    """The embedded model as LangChain's, with tools in Qwen's format.

    Attributes:
        log: every call: the seed, the tokens, the text, and whether it called tools.
        known: replies by request, so that a run that is made again says the same and takes no time.
    """

    sampler: LocalSampler
    seed: int = 0
    temperature: float = 0.6
    max_tokens: int = MOST_TOKENS
    log: list[dict[str, Any]]
    known: dict[str, Rollout]
    model_config = ConfigDict(arbitrary_types_allowed=True)

    @property
    def _llm_type(self) -> str:
        return "embedded"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(one) for one in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], *_: Any, **given: Any) -> ChatResult:
        tools = given.get("tools") or []
        seed, heat = given.get("seed", self.seed), given.get("temperature", self.temperature)
        asked = prompt_of(messages, tools)
        prefix = FORCED if given.get("tool_choice") == "price_of_item" else None
        request = SampleRequest(asked, 1, heat, self.max_tokens, seed, prefix, want_logprobs=False)
        key = json.dumps([asked, heat, seed, prefix])
        new = key not in self.known
        if new:
            self.known[key] = self.sampler.sample(request).rollouts[0]
        made = self.known[key]
        calls = calls_of(made.text, {one["function"]["name"] for one in tools})
        entry = {"seed": seed, "read": made.usage.prompt_tokens, "written": made.usage.completion_tokens}
        self.log.append({**entry, "text": made.text, "tools": len(calls), "new": new})
        message = AIMessage(
            "" if calls else made.text,
            tool_calls=[{"type": "tool_call", "id": f"c{len(self.log)}-{i}", **one} for i, one in enumerate(calls)],
            response_metadata={"finish_reason": made.finish_reason},
            usage_metadata={
                "input_tokens": made.usage.prompt_tokens,
                "output_tokens": made.usage.completion_tokens,
                "total_tokens": made.usage.tokens,
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


def prompt_of(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]) -> tuple[dict[str, str], ...]:
    """``messages`` as Qwen's chat template writes them: tools in the system's message, results as the user's."""
    asked: list[dict[str, str]] = []
    results = False
    for message in messages:
        text = str(message.text)
        if message.type == "system" and tools:
            text += TOOLS.format(tools="\n".join(json.dumps(one) for one in tools))
        if isinstance(message, AIMessage):
            calls = [json.dumps({"name": x["name"], "arguments": x["args"]}) for x in message.tool_calls]
            text = "\n".join([*([text] if text else []), *(f"<tool_call>\n{x}\n</tool_call>" for x in calls)])
        if isinstance(message, ToolMessage):
            text = f"<tool_response>\n{text}\n</tool_response>"
            if results:
                asked[-1]["content"] += f"\n{text}"
                continue
        results = isinstance(message, ToolMessage)
        role = {"human": "user", "tool": "user", "ai": "assistant"}.get(message.type, message.type)
        asked.append({"role": role, "content": text})
    return tuple(asked)


def calls_of(text: str, names: set[str]) -> list[dict[str, Any]]:
    """The tool calls in ``text``: tagged, or, as these models also write them, bare or in a code fence."""
    tagged = re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, flags=re.DOTALL)
    bare = re.sub(r"```(?:json|xml)?|</?tools?>", "", text)
    found = []
    for piece in tagged or [bare]:
        at, decoder = 0, json.JSONDecoder()
        while (at := piece.find("{", at)) >= 0:
            try:
                value, at = decoder.raw_decode(piece, at)
            except ValueError:
                break
            if set(value) == {"name", "arguments"} and value["name"] in names and isinstance(value["arguments"], dict):
                found.append({"name": value["name"], "args": value["arguments"]})
    return found


def order_of(task: str, number: int, seed: int) -> dict[str, int]:
    """Order ``number``: quantities by item."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311  # no secret
    cheap = sorted(item for item, price in PRICES.items() if price <= 12)
    items, quantities = (cheap, (2, 5)) if task == "fields" else (sorted(PRICES), (3, 19))
    return {item: rng.randint(*quantities) for item in rng.sample(items, 2)}


def wish_of(order: dict[str, int]) -> str:
    """The order as a customer says it."""
    *most, last = [f"{n} {plural(item)}" for item, n in order.items()]
    return f"I would like {', '.join(most)} and {last}, please."


def verifier_of(task: str, order: dict[str, int]) -> PydanticVerifier:
    """Checks an answer to ``order``; names what is wrong, and never what would be right."""

    class Line(BaseModel):
        item: str
        quantity: int
        price: float
        amount: float = Field() if task == "amounts" else 0.0

    class Bill(BaseModel):
        currency: str = Field() if task == "fields" else "EUR"
        lines: list[Line]
        total: float

        @model_validator(mode="after")
        def adds_up(self) -> "Bill":
            wrong, had = [], [item_of(line.item) for line in self.lines]
            for i, (line, item) in enumerate(zip(self.lines, had, strict=True), 1):
                if item not in order or had.index(item) != i - 1:
                    wrong.append(f"line {i}: {line.item!r} was not ordered, or has a line already")
                    continue
                if line.quantity != order[item]:
                    wrong.append(f"line {i}: quantity {line.quantity} is not what was ordered")
                if abs(line.price - PRICES[item]) > 0.001:
                    wrong.append(f"line {i}: price {line.price} is not what price_of_item says")
                if task == "amounts" and line.amount != line.quantity * line.price:
                    wrong.append(f"line {i}: amount {line.amount} is not quantity times price")
            wrong += [f"{item} was ordered and has no line" for item in order if item not in had]
            if abs(self.total - sum(line.quantity * line.price for line in self.lines)) > 0.005:
                wrong.append(f"total {self.total} is not the sum of quantity times price over the lines")
            if wrong:
                raise ValueError("; ".join(wrong))
            return self

    return PydanticVerifier(Bill)


def first_of(chat: Chat, task: str, order: dict[str, int]) -> str | None:
    """The agent's own final answer; None where it comes to none."""
    agent = create_agent(chat, [price_of_item], system_prompt=PROMPTS[task], middleware=[LookUpFirst()])
    try:
        state = agent.invoke({"messages": [HumanMessage(wish_of(order))]}, {"recursion_limit": MOST_STEPS})
    except GraphRecursionError:
        return None
    return str(state["messages"][-1].text)


def attempt(arm: str, chat: Chat, task: str, order: dict[str, int], seed: int, before: int) -> dict[str, Any]:
    """The attempts of ``arm`` behind the ``before`` calls of the model that led to the failed answer."""
    judge = verifier_of(task, order)
    total = str(round(sum(n * PRICES[item] for item, n in order.items()), 2))
    middleware = RecoverabilityMiddleware(
        verifier=judge,
        remedies=[ARMS[arm]],
        policy=FixedPolicy((arm,)),
        budget=RetryBudget(attempts=ATTEMPTS, seconds=None),
        expected=lambda _: total,
        seed=seed,
    )
    agent = create_agent(chat, [price_of_item], system_prompt=PROMPTS[task], middleware=[LookUpFirst(), middleware])
    chat.log.clear()
    ended, text = "recursion", ""
    try:
        state = agent.invoke({"messages": [HumanMessage(wish_of(order))]}, {"recursion_limit": MOST_STEPS})
        text = str(state["messages"][-1].text)
        ended = str(state["messages"][-1].response_metadata.get("rfx", {}).get("outcome"))
    except Unresolved as error:
        ended = str(error.case.outcome.status) if error.case is not None and error.case.outcome else "unresolved"
    except GraphRecursionError:
        pass
    if any(entry["new"] for entry in chat.log[:before]):
        raise RuntimeError(f"order {order}: the arm {arm} did not start from the same failed answer")
    draws: list[dict[str, Any]] = []
    for entry in chat.log[before:]:
        if len(draws) == ATTEMPTS or (draws and draws[-1]["passed"]):
            break
        verdict = None if entry["tools"] else judged(judge, order, entry["text"])
        passed = verdict is not None and verdict.passed
        draws.append({**entry, "passed": passed, "why": "" if verdict is None else verdict.reason})
    passed_at_last = bool(text) and judged(judge, order, text).passed
    return {"draws": draws, "ended": ended, "passed_at_last": passed_at_last, "calls": len(chat.log) - before}


def judged(judge: PydanticVerifier, order: dict[str, int], text: str) -> Any:
    return judge.verify(Step.of(wish_of(order)), Rollout(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--task", choices=sorted(PROMPTS), default="fields")
    parser.add_argument("--failures", type=int, default=40)
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="that compute; by default as many as there are CPUs")
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.journal is not None and options.journal.exists():
        rows = [json.loads(line) for line in options.journal.read_text().splitlines()]
    done, until = {row["order"] for row in rows}, time.monotonic() + 60 * options.minutes
    with LocalSampler(options.model, threads=options.threads, top_logprobs=None, parallel=1) as sampler:
        for number in range(options.orders):
            failures = sum("arms" in row for row in rows)
            if failures >= options.failures or time.monotonic() > until:
                break
            if number not in done:
                rows.append(play(sampler, options.task, number, options.seed))
                if options.journal is not None:
                    with options.journal.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps(figures(rows, options), indent=2))


def play(sampler: LocalSampler, task: str, number: int, seed: int) -> dict[str, Any]:
    """One order: the agent's own answer, and both arms where it failed though the tool was called."""
    order, own = order_of(task, number, seed), seed + 31 * number
    chat = Chat(sampler=sampler, seed=own, log=[], known={})
    text = first_of(chat, task, order)
    row: dict[str, Any] = {"order": number, "items": order, "first": list(chat.log)}
    if text is None:
        return {**row, "ended": "no_answer"}
    verdict = judged(verifier_of(task, order), order, text)
    used = any(entry["tools"] for entry in chat.log)
    row |= {"ended": "passed" if verdict.passed else "failed", "used": used, "why": verdict.reason}
    if used and not verdict.passed:
        before = len(chat.log)
        row["arms"] = {arm: attempt(arm, chat, task, order, own + 7, before) for arm in ARMS}
    return row


def figures(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the failures, with 95 % bootstrap intervals over them; differences are paired.

    ``held_the_failed_answer`` is the share of attempts whose text holds the failed answer word for word.
    """
    failed = [row for row in rows if "arms" in row]
    counts = {
        "model": options.model,
        "task": options.task,
        "orders": len(rows),
        "no_answer": sum(row["ended"] == "no_answer" for row in rows),
        "passed_at_first": sum(row["ended"] == "passed" for row in rows),
        "used_the_tool": sum(bool(row.get("used")) for row in rows),
        "failures": len(failed),
    }
    if not failed:
        return counts
    rng = np.random.default_rng(options.seed)
    pick = rng.integers(0, len(failed), (4000, len(failed)))

    def share(column: Any) -> dict[str, Any]:
        interval = np.quantile(column[pick].mean(axis=1), (0.025, 0.975))
        return {"share": round(float(column.mean()), 3), "interval": [round(float(x), 3) for x in interval]}

    def column(arm: str, what: str) -> Any:
        runs = [row["arms"][arm] for row in failed]
        if what == "passed_at_last":
            return np.array([run[what] for run in runs], dtype=float)
        return np.array([any(x["passed"] for x in run["draws"][: int(what)]) for run in runs], dtype=float)

    wanted = {"within_1": "1", "within_2": "2", "passed_at_last": "passed_at_last"}
    arms: dict[str, Any] = {}
    for arm in ARMS:
        draws = [(row["first"][-1]["text"].strip(), x) for row in failed for x in row["arms"][arm]["draws"]]
        measures = {
            "tokens_per_attempt": [x["read"] + x["written"] for _, x in draws],
            "written_per_attempt": [x["written"] for _, x in draws],
            "called_tools": [x["tools"] > 0 for _, x in draws],
            "held_the_failed_answer": [answer in x["text"] for answer, x in draws],
            "no_json": [x["why"].startswith("not JSON") for _, x in draws],
        }
        arms[arm] = {name: share(column(arm, what)) for name, what in wanted.items()}
        arms[arm] |= {"attempts": len(draws)}
        arms[arm] |= {name: round(float(np.mean(values)), 3) for name, values in measures.items() if values}
        arms[arm] |= {"continued": sum(row["arms"][arm]["calls"] > len(row["arms"][arm]["draws"]) for row in failed)}
    differences = {name: share(column("revise", what) - column("retry", what)) for name, what in wanted.items()}
    return counts | {"arms": arms, "revise_minus_retry": differences}


if __name__ == "__main__":
    main()
