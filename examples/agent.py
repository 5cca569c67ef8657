"""A tool-calling agent gives a wrong answer, and the middleware, added in one line, recovers it.

python examples/agent.py

The model is scripted: a model small enough to come with this example is too weak to call tools, and what an agent does
with a wrong answer is easier to follow when the answer is wrong every time. The verifier and the sandbox are real.
"""

from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from rfx_agent import FunctionVerifier, ProgramTool, RecoverabilityMiddleware

PRICES = {"lamp": 738}
TOOL = ProgramTool(sandbox="monty")  # or "bubblewrap", a whole CPython, where that is installed


@tool
def price(item: str) -> int:
    """The price of one item."""
    return PRICES[item]


class ScriptedModel(GenericFakeChatModel):
    """Says its messages in order."""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Nothing to bind: the script calls the tools."""
        return self.bind(**kwargs)


def main() -> None:
    """Ask for a total that the model gets wrong each time, until it is to write a program."""
    script = [
        AIMessage("", tool_calls=[{"name": "price", "args": {"item": "lamp"}, "id": "call-1"}]),
        AIMessage("962 lamps cost 709856."),  # wrong, and so are the three draws after it
        *(AIMessage(f"962 lamps cost {wrong}.") for wrong in (709056, 710956, 709946)),
        AIMessage("```python\nanswer = f'962 lamps cost {738 * 962}.'\n```"),
    ]
    agent = create_agent(
        ScriptedModel(messages=iter(script)),
        [price],
        middleware=[RecoverabilityMiddleware(verifier=FunctionVerifier(is_right), tool=TOOL)],
    )
    state = agent.invoke({"messages": [("user", "What do 962 lamps cost?")]})
    for message in state["messages"]:
        print(f"{message.type:5} {message.text or message.tool_calls}")
    print(state["messages"][-1].response_metadata["rfx"])
    print(f"programs ran in {TOOL.sandbox.what}")


def is_right(text: str) -> bool:
    """Whether the total in ``text`` is what the shop would charge."""
    return str(962 * PRICES["lamp"]) in text


if __name__ == "__main__":
    main()
