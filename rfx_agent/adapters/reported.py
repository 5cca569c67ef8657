"""What the models inside one run of the user's own thing used."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from rfx_agent.records import Usage
from rfx_agent.samplers.chat.parameters import cap_in
from rfx_agent.samplers.chat.read import Prompt, lost_usage, usage_of_result
from rfx_agent.samplers.openai.provider_errors import tries as tries_of
from rfx_agent.samplers.openai.transport import Tries

__all__ = ["Reported"]

_ONE = Usage(calls=1)


class Reported(BaseCallbackHandler):
    """Counts the tokens of the models inside one run; what they do not report is estimated from the text.

    Attributes:
        cap: tokens that a call which was lost is taken to have written, where the model says none of its own.
        lost: tries that a provider may have worked on and that brought nothing.
        gone: what they are charged.
    """

    run_inline = True
    ignore_chain = ignore_agent = ignore_retriever = ignore_retry = ignore_custom_event = True

    def __init__(self) -> None:
        self.cap, self.lost = 0, 0
        self._usage, self.gone = Usage(), Usage()
        self._asked: dict[UUID, tuple[Sequence[Prompt], int | None, Tries]] = {}
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Calls of models that were heard of."""
        return self._usage.calls

    def usage(self, otherwise: Usage = _ONE, *, lost: bool = True) -> Usage:
        """What was used; ``otherwise`` where no model was heard of. A run is at least one call.

        Args:
            otherwise: see above.
            lost: whether with what is charged for the calls that were lost.
        """
        return self._usage + (self.gone if lost else Usage()) if self._usage.calls else otherwise

    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **more: Any
    ) -> None:
        """A chat model is asked."""
        self._begun(run_id, messages, more)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **more: Any) -> None:
        """A model that takes a text, not messages, is asked."""
        self._begun(run_id, prompts, more)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """One model call is over."""
        prompts, cap, tries = self._over(run_id)
        lost = tries.earlier
        if any(response.generations):
            self._add(usage_of_result(response, prompts) + Usage(calls=lost), prompts, cap, lost)
        else:  # the provider worked, and gave nothing of it
            self._add(Usage(calls=lost + 1), prompts, cap, lost + 1)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """One model call failed. Each try that the provider may have worked on is taken to have used its whole cap."""
        prompts, cap, tries = self._over(run_id)
        calls, lost = tries_of(error)
        if tries.tried:
            calls, lost = tries.tried, tries.spoiled
        self._add(Usage(calls=max(calls, 1)), prompts, cap, 1 if lost is None else lost)

    def _begun(self, run_id: UUID, prompts: Sequence[Prompt], more: Mapping[str, Any]) -> None:
        tries = Tries()
        tries.begin(run_id)
        self._asked[run_id] = prompts, cap_in(more.get("invocation_params")), tries

    def _over(self, run_id: UUID) -> tuple[Sequence[Prompt], int, Tries]:
        """What a call was asked, its cap and its tries; then it is forgotten."""
        prompts, cap, tries = self._asked.pop(run_id, ((), None, Tries()))
        tries.end()
        return prompts, self.cap if cap is None else cap, tries

    def _add(self, used: Usage, prompts: Sequence[Prompt], cap: int, lost: int) -> None:
        gone = sum((lost_usage(prompt, cap, lost) for prompt in prompts), Usage())
        with self._lock:
            self.lost += lost
            self.gone += gone
            self._usage += used
