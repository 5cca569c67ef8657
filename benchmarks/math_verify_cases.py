"""math-verify's own test cases, judged by ``MathVerifier``: one JSON object.

    pip download --no-deps --no-binary :all: math-verify==0.9.0 && tar xzf math_verify-0.9.0.tar.gz
    python benchmarks/math_verify_cases.py math_verify-0.9.0/tests [--list]

Its tests are read, not run: each pair of a reference and a prediction that they expect to be equal or not. Left out are
repeated pairs and those that ask for a mode of math-verify's own (variables that do not matter, sets that equal
relations both ways); pairs with a precision of their own are given a tolerance.
"""

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfx_agent import MathVerifier, Rollout, Step


def cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Every literal case of a ``parametrize`` that has a ``gold`` and a ``pred``."""
    seen: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "parametrize":
                continue
            try:
                names, values = ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1])
            except ValueError:  # made by code
                continue
            keys = [x.strip() for x in names.split(",")]
            for row in values:
                case = dict(zip(keys, row, strict=True)) if len(keys) > 1 else {}
                pair = (case.get("gold"), case.get("pred"))
                own_mode = case.get("strict") is False or case.get("allow_set_relation_comp")
                if None in pair or pair in seen or own_mode:
                    continue
                seen.add(pair)
                yield case | {"equal": bool(case.get("expected", case.get("result")))}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--list", action="store_true")
    chosen = options.parse_args()
    counts = {"equal": [0, 0], "unequal": [0, 0]}
    listed = []
    for case in cases(chosen.folder):
        tolerance = 0.02 if case.get("precision", 6) < 6 else 0.0
        verdict = MathVerifier(case["gold"], tolerance=tolerance).verify(Step.of("?"), Rollout(case["pred"]))
        right = verdict.passed is case["equal"]
        count = counts["equal" if case["equal"] else "unequal"]
        count[0] += right
        count[1] += 1
        if not right:
            listed.append(
                {"gold": case["gold"], "pred": case["pred"], "equal": case["equal"], "reason": verdict.reason}
            )
    report: dict[str, Any] = {what: {"as expected": n, "cases": of} for what, (n, of) in counts.items()}
    if chosen.list:
        report["listed"] = listed
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
