"""How the parsed answers of a set of draws are spread: the evidence that needs no log-probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rfx_agent.errors import FeatureError
from rfx_agent.records import Agreement

__all__ = ["agreement"]


def agreement(answers: Sequence[str | None], draw_ids: Sequence[str | None] | None = None) -> Agreement:
    """Count distinct draws and how far their answers agree.

    Rollouts with the same id are one draw, whatever a cache makes of it: the first answer found counts. A
    draw without an answer (None) agrees with no answer: all of them are one more category in ``distinct`` and
    ``entropy``, and never the mode. So where no draw has an answer, ``modal_share`` is 0: agreement about
    nothing is no agreement.

    Args:
        answers: canonical answers, one per rollout; None where none was found.
        draw_ids: response ids, aligned with ``answers``; a rollout whose id is None is a draw of its own.

    Raises:
        FeatureError: lengths that differ.
    """
    if draw_ids is not None and len(draw_ids) != len(answers):
        raise FeatureError(f"{len(answers)} answers and {len(draw_ids)} draw ids; give one id per answer, or None")
    draws: dict[object, str | None] = {}
    for i, answer in enumerate(answers):
        response = None if draw_ids is None else draw_ids[i]
        key: object = i if response is None else response
        if draws.get(key) is None:
            draws[key] = answer
    if not draws:
        return Agreement(draws=0, distinct=0, modal_share=0.0, entropy=0.0)

    n = len(draws)
    counts = Counter(draws.values())
    answered = [(answer, count) for answer, count in counts.most_common() if answer is not None]
    modal, most = answered[0] if answered else (None, 0)
    entropy = -math.fsum(count / n * math.log(count / n) for count in counts.values())
    return Agreement(
        draws=n,
        distinct=len(counts),
        modal_share=most / n,
        entropy=min(max(entropy / math.log(n), 0.0), 1.0) if n > 1 else 0.0,
        modal=modal,
    )
