"""Problems of reasoning-gym, judged by its generators' own scorers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rfx_agent._extras import need
from rfx_agent.checks import whole
from rfx_agent.errors import ConfigError
from rfx_agent.lab.problems.problem import NUMBER, Problem, is_number
from rfx_agent.ports import Verifier
from rfx_agent.records import Rollout, Step, Verdict
from rfx_agent.verifiers.answers import canonical, extract_answer
from rfx_agent.verifiers.base import NONE_FOUND

__all__ = ["ASK", "DEFAULT", "EVALUATES", "GymVerifier", "from_gym"]

ASK = " Show the key calculation in one or two short lines, then put your final answer within \\boxed{}."
"""What is asked behind a generator's question."""

DEFAULT: Mapping[str, Mapping[str, Any]] = {
    "chain_sum": {"max_terms": 4, "min_digits": 2, "max_digits": 4},
    "products": {"max_digits": 3},
    "basic_arithmetic": {"min_terms": 3, "max_terms": 4, "max_digits": 2},
    "decimal_chain_sum": {"max_terms": 3, "max_digits": 2, "max_decimal_places": 2},
    "gcd": {"max_value": 100},
    "lcm": {"max_value": 30},
    "fraction_simplification": {"max_value": 20, "min_factor": 2, "max_factor": 12, "styles": ("plain",)},
    "simple_equations": {"max_terms": 3, "max_value": 30},
    "calendar_arithmetic": {"tasks": ["weekday_offset", "weekday_of_date", "weekday_of_date_from_first_date"]},
    "time_intervals": {"task_types": ["time", "time_seconds", "date"]},
    "count_bits": {"max_n": 255},
    "base_conversion": {"max_base": 10, "max_value": 200},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "leg_counting": {"min_animals": 2, "max_animals": 3},
    "spell_backward": {"max_word_len": 6},
    "number_sequence": {"max_complexity": 2},
}
"""Generators with short prompts and answers that a small model gets wrong often, and their settings."""

_LONGEST = 300  # characters of an answer that a generator's scorer is asked about; none of theirs comes near
_HOW = "No final answer was found in the text. Put it within \\boxed{}."
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")


class GymVerifier(Verifier):
    """Passes what a reasoning-gym generator's own scorer gives full marks.

    The answer is what the text marks as its final answer, else its last line. It is tried as it stands and in plainer
    spellings (``1,234`` as 1234, ``x = 5`` as 5, ``\\text{Friday}`` as Friday), and the best score counts: the spelling
    of a right answer is no failure. What the scorer cannot read does not pass. A text that fails and marks no answer
    has given none: its kind is ``no_answer``, and the feedback says how to mark one.

    Args:
        dataset: has ``score_answer(answer, entry)``.
        entry: the problem, as the dataset gave it.
        name: what the verifier is called in records.
    """

    needs_peers = False
    blind = True

    def __init__(self, dataset: Any, entry: Mapping[str, Any], *, name: str = "reasoning_gym") -> None:
        self.name = name
        self._dataset, self._entry = dataset, dict(entry)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        marked = extract_answer(rollout.said)
        found = marked or _last_line(rollout.said)
        if not found:
            return Verdict(False, reason=NONE_FOUND, feedback=_HOW, kind="no_answer")
        if len(found) > _LONGEST:
            return Verdict(False, answer=found[:_LONGEST], score=0.0, reason="what is given for an answer is too long")
        best, shown = 0.0, found
        for spelling in _spellings(found, str(self._entry.get("answer", ""))):
            try:
                value = float(self._dataset.score_answer(spelling, self._entry))
            except Exception:  # noqa: BLE001, S112  # the scorer could not read what a model wrote
                continue
            if value > best:
                best, shown = value, spelling
        passed = best >= 1.0
        if not passed and not marked:
            return Verdict(
                False, answer=canonical(found), score=best, reason=NONE_FOUND, feedback=_HOW, kind="no_answer"
            )
        said = "the generator's scorer accepts it" if passed else "the generator's scorer does not accept it"
        return Verdict(passed, answer=shown if passed else canonical(found), score=best, reason=said)

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does; it waits for nothing."""
        return self.verify(step, rollout, peers=peers)


def from_gym(names: Sequence[str] | None = None, *, per_generator: int = 10, seed: int = 0) -> tuple[Problem, ...]:
    """Problems of reasoning-gym, the generators in turn; more per generator are appended at the end.

    Args:
        names: generators; those of ``DEFAULT`` by default. One that is not in it has the library's own settings.
        per_generator: problems of each.
        seed: of every generator.

    Raises:
        ConfigError: reasoning-gym is not installed; a generator that it does not have, or that evaluates answers as
            code; fewer than one problem.
    """
    whole("per_generator", per_generator, least=1)
    gym, known = need("reasoning_gym", "dev"), need("reasoning_gym.factory", "dev").DATASETS
    chosen = list(dict.fromkeys(DEFAULT if names is None else names))
    made = []
    for name in chosen:
        if name not in known:
            raise ConfigError(f"reasoning-gym has no generator {name!r}; it has {', '.join(sorted(known))}")
        if name in EVALUATES:
            raise ConfigError(f"generator {name!r} evaluates a model's answer as code; choose another")
        made.append(gym.create_dataset(name, size=per_generator, seed=seed, **DEFAULT.get(name, {})))
    return tuple(
        _from_entry(name, i, dataset, dataset[i])
        for i in range(per_generator)
        for name, dataset in zip(chosen, made, strict=True)
    )


# Their scorers hand the answer to eval, exec or SymPy's parser, and the answer is a model's text.
EVALUATES = frozenset(
    {
        "binary_matrix",
        "codeio",
        "composite",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "propositional_logic",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)


def _from_entry(name: str, number: int, dataset: Any, entry: Mapping[str, Any]) -> Problem:
    messages = ({"role": "user", "content": entry["question"].rstrip() + ASK},)
    verifier = GymVerifier(dataset, entry, name=f"reasoning_gym:{name}")
    return Problem(f"{name}-{number}", messages, name, entry["answer"], verifier)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _spellings(found: str, expected: str) -> list[str]:
    """``found`` and plainer ways to write it, without repeats."""
    plain = _TEXT.sub(r"\1", found).replace("\\!", "").replace("{,}", ",").strip("*`$ \n\t")
    ways: list[Callable[[str], str]] = [
        str,
        lambda text: canonical(text, casefold=False),
        lambda text: text.rpartition("=")[2].strip(),
        lambda text: canonical(text.rpartition("=")[2], casefold=False),
        str.lower,
    ]
    spellings = [found, *(way(plain) for way in ways)]
    if is_number(expected) and len(numbers := NUMBER.findall(plain)) == 1:
        spellings += [numbers[0].rstrip(",."), canonical(numbers[0].rstrip(",."))]  # a unit beside the number
    return [text for text in dict.fromkeys(spellings) if text]
