"""A LangChain chain whose first answer is wrong, recovered behind the same interface: invoked, streamed and traced.

python examples/chain.py
"""

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from rfx_agent import ExactVerifier, Step, with_recovery


class Attempts(BaseCallbackHandler):
    """Prints the runs that are children of the wrapped call, as a tracer would show them."""

    def __init__(self) -> None:
        self.call: Any = None

    def on_chain_start(self, serialized: Any, inputs: Any, **about: Any) -> None:
        """A run begins."""
        if about["name"] == "with_recovery":
            self.call = about["run_id"]
        elif about["parent_run_id"] == self.call:
            print(f"  run: {about['name']} {about['tags']}")


def main() -> None:
    """Wrap prompt | model | parser, and ask it three questions."""
    # A double, so that nothing has to be downloaded: it is wrong at first. Put any chat model here.
    texts = ["17 * 24 is 398\nAnswer: 398", "17 * 24 is 408\nAnswer: 408"] * 3
    model = GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts]))
    prompt = ChatPromptTemplate.from_messages([("human", "{question} End with one line: Answer: <number>")])
    solve = with_recovery(
        prompt | model | StrOutputParser(),
        verifier=ExactVerifier(),
        prompt=lambda given: Step.of(given["question"], expected=given["right"]),  # the verifier alone sees it
        extra_samples=1,
    )
    given = {"question": "What is 17 times 24?", "right": "408"}
    print("invoked:", repr(solve.invoke(given, {"callbacks": [Attempts()]})))
    print("streamed:", list(solve.stream(given)))  # nothing of the failed attempt
    print("in a chain:", (solve | (lambda text: text.split()[-1])).invoke(given))


if __name__ == "__main__":
    main()
