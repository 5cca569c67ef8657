"""How often the verifiers of plain answers are wrong, over reasoning-gym's problems: one JSON object.

Each problem's own answer and near misses of it are written in twelve formats and judged by ``MathVerifier`` and
``ExactVerifier``, the latter also with ``units=True``, and ``order=False`` where no order is asked for ("loose"). The
generator's own scorer says which answers are right. Reported are false passes and false failures, of all formats and of
the documented ones, and with ``--list`` each of them. Where a scorer is more lenient
than equality (``FORGIVING`` says which and why), its yes to a near miss does not count against a verifier's no; nor
does its no to what it cannot read (``BLIND``) against a yes.

    python benchmarks/verifiers.py [--problems 5] [--seed 0] [--list]
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import reasoning_gym

from rfx_agent import ExactVerifier, MathVerifier, Rollout, Step

GENERATORS: dict[str, dict[str, Any]] = {
    "chain_sum": {},
    "products": {},
    "basic_arithmetic": {},
    "decimal_chain_sum": {},
    "decimal_arithmetic": {},
    "gcd": {},
    "lcm": {},
    "fraction_simplification": {"styles": ("plain", "latex_frac")},
    "simple_equations": {},
    "calendar_arithmetic": {},
    "time_intervals": {},
    "count_bits": {},
    "base_conversion": {},
    "letter_counting": {},
    "leg_counting": {},
    "spell_backward": {},
    "number_sequence": {},
    "number_sorting": {},
    "number_filtering": {},
    "prime_factorization": {},
    "power_function": {},
    "complex_arithmetic": {},
    "polynomial_multiplication": {},
    "simple_geometry": {},
    "number_format": {},
    "word_sorting": {},
    "bitwise_arithmetic": {},
    "simple_integration": {},
    "gsm_symbolic": {},
}
FORGIVING = {
    "decimal_arithmetic": "accepts what is near",
    "decimal_chain_sum": "accepts what is near",
    "power_function": "accepts what is near",
    "number_format": "accepts what is near",
    "number_sorting": "accepts what is near",
    "gsm_symbolic": "ignores the sign",
    "time_intervals": "reads other spellings of a time",
    "calendar_arithmetic": "ignores case",
    "simple_integration": "accepts any antiderivative",
}
UNORDERED = {"prime_factorization"}
BLIND = {"complex_arithmetic": "cannot read the imaginary part first"}
_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d+\.\d+")


def plain(answer: str) -> str:
    return f"Let me work through this step by step.\n\nAnswer: {answer}"


def thousands(answer: str) -> str:
    number = re.fullmatch(r"(-?)(\d+)(\.\d+)?", answer)
    grouped = answer if number is None else f"{number[1]}{int(number[2]):,}{number[3] or ''}"
    return f"Answer: {grouped}"


def united(answer: str) -> str:
    return (
        f"Answer: {answer} units" if _INTEGER.fullmatch(answer) or _DECIMAL.fullmatch(answer) else f"Answer: {answer}."
    )


FORMATS: dict[str, tuple[bool, Callable[[str], str]]] = {
    # Whether the documentation names the form, and the form.
    "line": (True, plain),
    "box": (True, lambda x: f"We add the parts and get the total, so \\boxed{{{x}}}."),
    "tag": (True, lambda x: f"Some work first.\n<answer>{x}</answer>"),
    "bold sentence": (True, lambda x: f"After the calculation, this is clear.\n\nThe final answer is **{x}**."),
    "heading": (True, lambda x: f"1. First step\n2. Second step\n\n### Final Answer\n\n{x}"),
    "code block": (True, lambda x: f"Answer:\n```\n{x}\n```"),
    "LaTeX": (True, lambda x: f"Answer:\n$$\n{x}\n$$"),
    "thinking": (True, lambda x: f"<think>\nMaybe Answer: 17, or \\boxed{{3}}? No.\n</think>\n\nAnswer: {x}"),
    "unit": (False, united),
    "thousands": (False, thousands),
    "remark": (False, lambda x: f"**Answer:** {x}\n\nLet me know if you would like to see the steps in more detail!"),
    "sentence": (False, lambda x: f"We look at the question first. Then we compute.\nTherefore, the result is {x}."),
}


def misses(answer: str, draw: random.Random) -> Iterator[str]:
    """Wrong answers near ``answer``: another digit, sign, order, part."""
    if _INTEGER.fullmatch(answer):
        value = int(answer)
        yield from (str(value + draw.choice((-1, 1))), str(-value or 1), f"{value or 1}0", str(value + 100))
        yield f"{value}.5"
    elif _DECIMAL.fullmatch(answer):
        last = str((int(answer[-1]) + draw.choice((1, 5))) % 10)
        yield from (answer[:-1] + last, answer.replace(".", "", 1), f"-{answer}".replace("--", ""))
        yield str(round(float(answer) * 1.01 + 0.01, len(answer.partition(".")[2])))
    digits = [m.span() for m in re.finditer(r"\d+", answer)]
    if digits:
        begin, end = draw.choice(digits)
        yield f"{answer[:begin]}{int(answer[begin:end]) + 1}{answer[end:]}"
        begin, end = draw.choice(digits)
        if end - begin > 1:
            yield f"{answer[:begin]}{answer[begin:end][::-1]}{answer[end:]}"
    if "/" in answer:
        top, _, bottom = answer.partition("/")
        yield f"{bottom}/{top}"
    parts = re.split(r"(,\s*|\s+|\*|×)", answer)
    if len(parts) > 2:
        swapped = parts[::-1]
        yield "".join(swapped)
        yield "".join(parts[:-2])
        first = parts[:]
        first[0], first[2] = first[2], first[0]
        yield "".join(first)
    if answer.isalpha() and len(answer) > 1:
        at = draw.randrange(len(answer) - 1)
        yield answer[:at] + answer[at + 1] + answer[at] + answer[at + 2 :]
        yield answer[::-1]
        yield answer[:-1]
    if "+" in answer or "-" in answer[1:]:
        at = max(answer.rfind("+"), answer.rfind("-"))
        yield answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1 :]


def cases(problems: int, seed: int) -> Iterator[tuple[str, Any, dict[str, Any], str, bool]]:
    """Generator, data set, problem, answer, and whether it is the problem's own."""
    for name, settings in GENERATORS.items():
        data = reasoning_gym.create_dataset(name, size=problems, seed=seed, **settings)
        for i, entry in enumerate(data):
            draw = random.Random(f"{name} {seed} {i}")  # noqa: S311  # what is written wrong is no secret
            own = str(entry["answer"])
            wrong = [x for x in dict.fromkeys(misses(own, draw)) if x != own and x.strip()]
            yield name, data, entry, own, True
            for answer in draw.sample(wrong, min(2, len(wrong))):
                yield name, data, entry, answer, False


def scored(data: Any, entry: dict[str, Any], answer: str) -> bool:
    try:
        return float(data.score_answer(answer, entry)) >= 1.0
    except Exception:  # noqa: BLE001  # a scorer that cannot read an answer does not accept it
        return False


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--problems", type=int, default=5)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--list", action="store_true")
    chosen = options.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    listed: list[dict[str, Any]] = []
    for name, data, entry, answer, own in cases(chosen.problems, chosen.seed):
        right = True if own else scored(data, entry, answer)
        step = Step.of(entry["question"], expected=str(entry["answer"]))
        loose = ExactVerifier(units=True, order=name not in UNORDERED, name="loose")
        for form, (documented, write) in FORMATS.items():
            text = write(answer)
            for verifier in (MathVerifier(), ExactVerifier(), loose):
                verdict = verifier.verify(step, Rollout(text))
                counts[verifier.name, "right" if right else "wrong"] += 1
                if right and documented:
                    counts[verifier.name, "right, documented"] += 1
                if verdict.passed == right:
                    continue
                what = "false failures" if right else "false passes"
                if not right and name in BLIND and sorted(answer) == sorted(str(entry["answer"])):
                    what = "right and not read by the scorer"
                elif right and not own and name in FORGIVING:
                    what = "forgiven by the scorer"
                counts[verifier.name, what] += 1
                counts[verifier.name, f"{what}, {name}"] += 1
                if what == "false failures" and documented:
                    counts[verifier.name, "false failures, documented"] += 1
                    counts[verifier.name, "false failures, documented, of the problem's own answer"] += own
                found = {"verifier": verifier.name, "what": what, "generator": name, "format": form}
                listed.append(found | {"expected": entry["answer"], "text": text, "reason": verdict.reason, "own": own})
    report: dict[str, Any] = {"generators": len(GENERATORS), "formats": len(FORMATS)}
    for verifier in ("math", "exact", "loose"):
        mine = {what: n for (judge, what), n in sorted(counts.items()) if judge == verifier}
        right, documented = mine.get("right", 0), mine.get("right, documented", 0)
        mine |= {
            "share of false failures": round(mine.get("false failures", 0) / max(right, 1), 4),
            "of them documented": round(mine.get("false failures, documented", 0) / max(documented, 1), 4),
        }
        report[verifier] = mine
    if chosen.list:
        report["listed"] = listed
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
