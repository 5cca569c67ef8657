"""Where a rollout is intervened at: its tokens, the peak of the demotion pressure and the window around it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from rfx_agent.errors import FeatureError, SamplerError
from rfx_agent.evidence.features import token_features, token_offset
from rfx_agent.evidence.tables import TopLogprobs
from rfx_agent.evidence.trajectory import Window, rollout_features
from rfx_agent.records import Rollout, Step
from rfx_agent.samplers.transformers.model import CausalModel
from rfx_agent.samplers.transformers.plans import Mixing
from rfx_agent.samplers.transformers.prefill import prefill

__all__ = ["Site", "Sites", "Tokens"]

_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Tokens:
    """A rollout as the specialist wrote it.

    Attributes:
        text: all of it, a continued prefix included.
        start: characters that were continued.
        before: ids of everything that was read before the first token.
        ids: the tokens.
        texts: text of each; they join to ``text[start:]``.
        head: ids of the continued prefix alone.
    """

    text: str
    start: int
    before: tuple[int, ...]
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    head: tuple[int, ...]

    def follow(self, model: CausalModel, position: int, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Texts of other tokens, ``ids``, from ``position`` on."""
        kept = (*self.head, *self.ids[:position])
        return model.token_texts((*kept, *ids))[len(kept) :]

    def offset(self, position: int) -> int:
        """Characters of ``text`` before the token at ``position``."""
        return self.start + token_offset(self.texts, position)

    @classmethod
    def none(cls, model: CausalModel, step: Step) -> Tokens:
        """Nothing written yet."""
        return cls("", 0, model.prompt_ids(step.messages), (), (), ())

    @classmethod
    def of(cls, model: CausalModel, step: Step, rollout: Rollout) -> Tokens:
        """From the rollout's table, else from its text.

        Raises:
            SamplerError: the tokens do not spell the text.
        """
        head, text = rollout.text[: rollout.start], rollout.text[rollout.start :]
        table = rollout.logprobs
        if table is not None and table.space == "ids":
            ids = tuple(int(token) for token in table.taken)
        else:
            ids = model.encode(text)
            if rollout.finish_reason == "stop" and model.end_id is not None:
                ids = (*ids, model.end_id)
        continued = model.encode(head)
        texts = model.token_texts((*continued, *ids))[len(continued) :]
        if "".join(texts) != text and rollout.tokens is not None and len(rollout.tokens) == len(ids):
            texts = rollout.tokens
        if "".join(texts) != text:
            raise SamplerError(
                f"{model.name}: the rollout's text is not what its {len(ids)} tokens spell; steer a rollout that this "
                "model wrote, with its table where the text does not survive being encoded"
            )
        before = rollout.prompt_ids
        if before is None:
            before = model.prompt_ids(step.messages, prefix=head)
        return cls(rollout.text, rollout.start, before, ids, texts, continued)


@dataclass(frozen=True, slots=True)
class Site:
    """Where J peaks.

    Attributes:
        window: positions of the junction.
        peak: position of the peak.
        mixing: the term that dominates J there.
        pressure: J there.
    """

    window: Window
    peak: int
    mixing: Mixing
    pressure: float


class Sites:
    """Finds the sites of rollouts, with one prefill of each model, and remembers those of recent ones.

    Args:
        specialist, ancestor: the models.
        top_k: entries per position that the features are computed from.
        coverage_k: size of the ancestor's preferred set.
        window: half-width of the junction, in positions.
        token_budget: tokens that are prefilled at a time; bounds memory.
    """

    def __init__(
        self,
        specialist: CausalModel,
        ancestor: CausalModel,
        *,
        top_k: int,
        coverage_k: int,
        window: int,
        token_budget: int = 4096,
    ) -> None:
        self._models = (specialist, ancestor)
        self._top_k = top_k
        self._coverage_k = coverage_k
        self._window = window
        self._token_budget = token_budget
        self._lock = threading.Lock()
        self._known: OrderedDict[object, Site | None] = OrderedDict()

    def find(self, tokens: Tokens, temperature: float) -> tuple[Site | None, tuple[int, int]]:
        """The site, or None where J is 0 everywhere; and the prompt tokens that each model read to find it.

        Raises:
            SamplerError: a model cannot read the rollout.
        """
        key = (tokens.before, tokens.ids, temperature)
        with self._lock:  # operators that ask for one rollout at once must not read it twice
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key], (0, 0)
            pairs = [self._score(model, tokens) for model in self._models]
            (specialist, read), (ancestor, read_by_ancestor) = pairs
            site = self._known[key] = self._locate(specialist, ancestor, temperature)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return site, (read, read_by_ancestor)

    def _score(self, model: CausalModel, tokens: Tokens) -> tuple[TopLogprobs, int]:
        (table,), read = prefill(model, [(tokens.before, tokens.ids)], k=self._top_k, token_budget=self._token_budget)
        if isinstance(table, FeatureError):
            raise SamplerError(f"{model.name} cannot read the rollout: {table}") from table
        return table, read

    def _locate(self, specialist: TopLogprobs, ancestor: TopLogprobs, temperature: float) -> Site | None:
        features = token_features(specialist, ancestor, temperature=temperature, coverage_k=self._coverage_k)
        found = rollout_features(features, window=self._window)
        if found is None or found.peak is None or found.junction is None:
            return None
        t = found.peak
        path, coverage = float(features.delta_path[t]), float(features.coverage_gap[t])
        mixing: Literal["path", "coverage"] = "path" if max(0.0, path) >= max(0.0, coverage) else "coverage"
        return Site(found.junction, t, mixing, float(features.demotion_pressure[t]))
