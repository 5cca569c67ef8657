"""Verifier by agreement among samples: for steps that nothing else can check."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from rfx_agent.checks import share as checked_share
from rfx_agent.checks import shown, whole
from rfx_agent.errors import ConfigError
from rfx_agent.evidence.agreement import agreement
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.answers import stated_answer
from rfx_agent.verifiers.base import HOW_TO_ANSWER, NONE_FOUND, PureVerifier, clip, shorten
from rfx_agent.verifiers.forms import canonical
from rfx_agent.verifiers.rates import RatesLike, loaded_rates

__all__ = ["AgreementVerifier"]


_READ = 1000  # answers that are remembered


class _New:
    """Of a draw whose answer is not known."""


_NEW = _New()


class AgreementVerifier(PureVerifier):
    """Passes when a rollout gives the most frequent answer and enough draws give it too.

    Weak evidence, and its verdicts say so: where a model is mostly wrong, its majority is too, and voting makes
    things worse. Use it only where nothing can check the step, and compare it with a verifier where one can.

    Args:
        share: least share of the draws that must give the modal answer, in (0, 1]. Answers that tie for the
            mode do not pass.
        min_draws: distinct draws below which nothing passes. Copies of one response are one draw, and a draw
            without an answer counts as one that disagrees.
        extract: finds the answer in what a rollout says after its thinking, or returns None; by default
            ``extract_answer``, and a short line alone is an answer too.
        rates: the shares of right and of wrong answers that it passes, as measured, or the path of a file of them.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> draws = [Rollout(text) for text in ("Answer: 7", "Answer: 8", "Answer: 7")]
        >>> AgreementVerifier().verify(Step.of("3 + 4?"), draws[0], peers=draws).passed
        True
    """

    needs_peers = blind = True

    def __init__(
        self,
        *,
        share: float = 0.5,
        min_draws: int = 3,
        extract: Callable[[str], str | None] | None = None,
        rates: RatesLike | None = None,
        name: str = "agreement",
    ) -> None:
        if checked_share("AgreementVerifier: share", share) == 0:
            raise ConfigError(f"AgreementVerifier: share is {share!r}; give a number above 0, at most 1")
        if extract is not None and not callable(extract):
            raise ConfigError(
                f"AgreementVerifier: extract is {shown(extract)}; give a function from text to str or None"
            )
        super().__init__(name)
        self.share = share
        self.min_draws = whole("AgreementVerifier: min_draws", min_draws, least=2)  # one draw agrees with itself
        self.rates = loaded_rates("AgreementVerifier", rates)
        self._extract = extract or stated_answer
        self._read: OrderedDict[bytes, str | _New | None] = OrderedDict()  # each draw is a peer of every later one

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout`` among ``peers``, which include it; it is added where they do not."""
        draws = list(peers)
        if not any(peer is rollout or (rollout.id and peer.id == rollout.id) for peer in draws):
            draws.append(rollout)
        answers = [self._answer(draw) for draw in draws]
        ids = [draw.response_id for draw in draws]
        mine = self._answer(rollout)
        if mine is None:
            return Verdict(False, reason=NONE_FOUND, feedback=HOW_TO_ANSWER, kind="no_answer", weak=True)
        spread = agreement(answers, ids)
        if spread.draws < self.min_draws:
            reason = f"{spread.draws} of at least {self.min_draws} draws: too few to agree"
            return Verdict(False, answer=mine, reason=reason, weak=True)
        # The same count of distinct draws, over this answer alone and over the others alone.
        share = agreement([mine if a == mine else None for a in answers], ids).modal_share
        best_other = agreement([None if a == mine else a for a in answers], ids).modal_share
        modal = share > best_other
        said = "the most frequent answer" if modal else "not the most frequent answer"
        reason = f"{clip(mine)!r} is {said}: {share:.0%} of {spread.draws} draws, {self.share:.0%} needed"
        return Verdict(modal and share >= self.share, answer=mine, score=share, reason=reason, weak=True)

    def _answer(self, rollout: Rollout) -> str | None:
        key = hashlib.blake2b(rollout.text.encode(errors="surrogatepass"), digest_size=16).digest()
        answer = self._read.get(key, _NEW)
        if isinstance(answer, _New):
            stated = self._extract(rollout.said)
            answer = self._read[key] = None if stated is None else shorten(canonical(stated))
            if len(self._read) > _READ:
                with contextlib.suppress(KeyError):  # another thread was quicker
                    self._read.popitem(last=False)
        return answer
