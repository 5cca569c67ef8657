"""An ancestor, or the specialist itself, scores rollouts inside the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from rfx_agent.checks import whole
from rfx_agent.errors import FeatureError, SamplerError
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.ports import Scorer
from rfx_agent.records import Rollout, ScoreResult, Step, Usage
from rfx_agent.samplers.transformers.compare import check_tokenizers
from rfx_agent.samplers.transformers.model import CausalModel, check_model
from rfx_agent.samplers.transformers.prefill import Scored, prefill

__all__ = ["TransformersScorer"]


class TransformersScorer(Scorer):
    """Gives a model's top-K log-probabilities at the positions of rollouts, in as few forward passes as fit.

    A rollout's tokens are those of its table, read after its ``prompt_ids``. Where it has no prompt ids, the step's
    messages and the continued prefix are encoded; where it has no table of ids, its text is, and the token that ends
    a turn follows where the rollout stopped by itself. With the specialist's own model this gives the specialist's
    tables, for rollouts drawn without log-probabilities.

    Args:
        model: the model that scores.
        specialist: the model that wrote the rollouts, whose tokenizer and chat template encode them; compared with
            ``model``'s before anything is scored. None: ``model``'s own are used.
        top_k: entries per row.
        token_budget: most tokens in a forward pass, padding included; bounds memory.
        name: for records and messages; by default the model's.

    Raises:
        ConfigError: a parameter that cannot work.

    One instance serves any number of threads and event loops; computations on one model run one at a time.

    Example:
        >>> specialist, ancestor = (CausalModel(f"qwen2.5-coder-{size}", device="cpu") for size in ("0.5b", "1.5b"))
        >>> TransformersScorer(ancestor, specialist=specialist).name
        'transformers:qwen2.5-coder-1.5b'
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        specialist: CausalModel | None = None,
        top_k: int = 100,
        token_budget: int = 4096,
        name: str | None = None,
    ) -> None:
        self.model = check_model("TransformersScorer: model", model)
        self.name = name or model.name
        self._texts = model if specialist is None else check_model("TransformersScorer: specialist", specialist)
        self._top_k = whole("TransformersScorer: top_k", top_k, least=1)
        self._token_budget = whole("TransformersScorer: token_budget", token_budget, least=1)
        self._lock = threading.Lock()
        self._checked = self._texts is model

    def __repr__(self) -> str:
        return f"TransformersScorer({self.model!r}, top_k={self._top_k}, token_budget={self._token_budget})"

    def score(self, step: Step, rollouts: Sequence[Rollout]) -> ScoreResult:
        """One table per rollout, aligned with its tokens; blocks.

        The usage's prompt tokens are those that the model really read: a prompt that several rollouts share counts
        once per forward pass. Its calls are 0, for no server is asked.

        Raises:
            TokenizerMismatch: the specialist's ids do not mean the same to this model; nothing was scored.
            SamplerError: the model could not compute, for want of memory for example.
            WeightsError: its weights could not be had or loaded.
        """
        with self._lock:
            if not self._checked:
                check_tokenizers(self._texts, self.model)
                self._checked = True
        tables: list[TopLogprobs | FeatureError | None] = [None] * len(rollouts)
        todo: dict[int, Scored] = {}
        for i, rollout in enumerate(rollouts):
            try:
                ids = self._taken(rollout, i)
                if ids:
                    todo[i] = (self._context(step, rollout), ids)
            except FeatureError as error:
                tables[i] = error
        try:
            found, read = prefill(
                self.model, [*todo.values()], k=self._top_k, token_budget=self._token_budget, names=[*todo]
            )
        except (RuntimeError, MemoryError) as error:  # PyTorch's own, a full device among them
            raise SamplerError(
                f"{self.name}: scoring {len(todo)} rollouts failed on {self.model.device}: {error}; where memory is "
                f"short, lower token_budget ({self._token_budget})"
            ) from error
        for i, table in zip(todo, found, strict=True):
            tables[i] = table
        return ScoreResult(tuple(tables), Usage(prompt_tokens=read))

    def _context(self, step: Step, rollout: Rollout) -> tuple[int, ...]:
        if rollout.prompt_ids is not None:
            return rollout.prompt_ids
        return self._texts.prompt_ids(step.messages, prefix=rollout.text[: rollout.start])

    def _taken(self, rollout: Rollout, index: int) -> tuple[int, ...]:
        """The ids that the rollout consists of, after whatever it continues."""
        text = rollout.text[rollout.start :]
        table = rollout.logprobs
        if table is not None and table.space == "ids":
            ids = tuple(table.taken.tolist())
            self._check(ids, text, index)
            return ids
        ids = self._texts.encode(text)
        if (back := self._texts.decode(ids)) != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(back, text, strict=False)) if a != b), min(len(back), len(text))
            )
            raise FeatureError(
                f"{self._texts.name}: the text changes when it is encoded and decoded, from character {at} on; "
                "sample with token ids (log-probabilities) to score it",
                rollout=index,
                position=len(self._texts.encode(text[:at])),
            )
        end = self._texts.end_id if rollout.finish_reason == "stop" else None
        return ids if end is None else (*ids, end)

    def _check(self, ids: tuple[int, ...], text: str, index: int) -> None:
        """Refuse ids that are not those of the text."""
        size = self.model.vocabulary
        outside = next((t for t, token in enumerate(ids) if token >= size), None)
        if outside is not None:
            raise FeatureError(
                f"{self.name}: other ids than it generated: {ids[outside]} is outside the vocabulary of {size}",
                rollout=index,
                position=outside,
            )
        if any(_same(text, spelled) for spelled in self._spellings(ids)):
            return
        done, position = 0, 0
        for position, piece in enumerate(self._texts.token_texts(ids)):  # noqa: B007  # read after the loop
            if not text.startswith(piece, done):
                break
            done += len(piece)
        else:
            position = len(ids)
        raise FeatureError(
            f"{self._texts.name}: other ids than it generated: they spell its text up to character {done} only",
            rollout=index,
            position=position,
        )

    def _spellings(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Servers differ in whether a special token has a text."""
        tokenizer, stops = self._texts.tokenizer, self._texts.stop_ids
        bare = ids[:-1] if ids and ids[-1] in stops else ids
        return (self._texts.decode(ids), tokenizer.decode(list(bare)), tokenizer.decode(list(ids)))


def _same(text: str, spelled: str) -> bool:
    # A character that the limit cut in half has no text, or a replacement's.
    return text == spelled or text.rstrip("\ufffd") == spelled.rstrip("\ufffd")
