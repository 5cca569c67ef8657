"""What the models inside one run of the user's own thing used."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from rfx_agent.records import Usage
from rfx_agent.samplers.chat.parameters import cap_in
from rfx_agent.samplers.chat.read import Prompt, lost_usage, usage_of_result
from rfx_agent.samplers.openai.provider_errors import tries

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
        self._prompts: dict[UUID, tuple[Sequence[Prompt], int | None]] = {}
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
        self._prompts[run_id] = messages, cap_in(more.get("invocation_params"))

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **more: Any) -> None:
        """A model that takes a text, not messages, is asked."""
        self._prompts[run_id] = prompts, cap_in(more.get("invocation_params"))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """One model call is over."""
        if not any(response.generations):  # the provider worked, and gave nothing of it
            self._failed(run_id, 1, 1)
            return
        prompts = self._asked(run_id)[0]
        used = usage_of_result(response, prompts)
        with self._lock:
            self._usage += used

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """One model call failed. Each try that the provider may have worked on is taken to have used its whole cap."""
        calls, lost = tries(error)
        self._failed(run_id, max(calls, 1), 1 if lost is None else lost)

    def _asked(self, run_id: UUID) -> tuple[Sequence[Prompt], int]:
        """What a call was asked, and its cap; then it is forgotten."""
        prompts, cap = self._prompts.pop(run_id, ((), None))
        return prompts, self.cap if cap is None else cap

    def _failed(self, run_id: UUID, calls: int, lost: int) -> None:
        prompts, cap = self._asked(run_id)
        used = sum((lost_usage(prompt, cap, lost) for prompt in prompts), Usage())
        with self._lock:
            self.lost += lost
            self.gone += used
            self._usage += Usage(calls=calls)
