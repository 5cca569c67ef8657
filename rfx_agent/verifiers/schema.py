"""Verifiers of structured output: the text holds JSON that fits a schema or a Pydantic model."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rfx_agent.checks import number
from rfx_agent.errors import ConfigError
from rfx_agent.records import Kind, Rollout, Step, Verdict
from rfx_agent.verifiers.base import NamedVerifier, clip, shorten
from rfx_agent.verifiers.worker import ask

__all__ = ["JsonSchemaVerifier", "PydanticVerifier"]

_DEPTH = 100  # nesting of JSON that is parsed; Python's parser and the validators recurse
_SHOWN = 3  # errors named in a reason
_FED = 8  # errors that a model is told
_TOLD = 400  # characters of each
_TRIES = 50  # places in a text where JSON is looked for
# A string, closed or not, so that each character is looked at once; JSON's strings do not span lines.
_STRUCTURE = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|[\[\]{}]')


class _JsonVerifier(NamedVerifier):
    """Finds JSON in the text; what is valid is for the subclasses to say.

    The text is JSON as a whole, or its last code fence is, or else the last ``{...}`` or ``[...]`` counts, one that
    begins a line before one within a line. Duplicate keys, ``NaN`` and ``Infinity`` are errors, because readers
    disagree on what they mean.
    """

    blind = True

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        problem, tried = "the text is empty", False
        for candidate in _candidates(rollout.text):
            try:
                value = _load(candidate)
            except ValueError as error:
                problem, tried = f"not JSON: {clip(str(error))}", True
                continue
            errors, answer = self._judge(value, candidate)
            if errors:
                reason = "; ".join(clip(error) for error in errors[:_SHOWN])
                more = "; and more" if len(errors) > _SHOWN else ""
                feedback = "\n".join(clip(error, _TOLD) for error in errors[:_FED])
                return Verdict(
                    False,
                    shorten(answer),
                    0.0,
                    reason + more,
                    feedback=f"The JSON is not valid.\n{feedback}",
                    kind="malformed",
                )
            return Verdict(True, answer=answer, score=1.0, reason="the JSON is valid")
        looks = tried and any(c in rollout.text for c in "[{")
        kind: Kind = "malformed" if looks else "no_answer"
        return Verdict(False, reason=problem, feedback=f"No valid JSON was found in the text: {problem}.", kind=kind)

    def _judge(self, value: Any, source: str) -> tuple[list[str], str]:
        """Errors with their place, and the canonical JSON."""
        raise NotImplementedError


class JsonSchemaVerifier(_JsonVerifier):
    """Passes when the JSON in the text is valid under ``schema``; the answer is the JSON in a canonical form.

    The schema's own ``$schema`` names the dialect, 2020-12 otherwise; references to other documents are refused, never
    fetched. Validation runs in a helper process that is killed after ``seconds``: a ``pattern`` or ``uniqueItems``
    takes hours on JSON that a model can write. Validation that is killed is a "no" with that reason.

    Args:
        schema: a JSON Schema.
        seconds: time for one validation.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work; the extra ``schema`` is not installed.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> verifier = JsonSchemaVerifier({"required": ["total"]})
        >>> verifier.verify(Step.of("The total as JSON?"), Rollout('{"total": 7}')).answer
        '{"total":7}'
    """

    def __init__(self, schema: Mapping[str, Any] | bool, *, seconds: float = 5.0, name: str = "json_schema") -> None:
        super().__init__(name)
        if importlib.util.find_spec("jsonschema") is None:
            raise ConfigError("JsonSchemaVerifier: jsonschema is not installed; pip install 'rfx-agent[schema]'")
        jsonschema = importlib.import_module("jsonschema")
        try:
            self._schema = json.loads(json.dumps(schema))
            kind = jsonschema.validators.validator_for(self._schema, default=jsonschema.Draft202012Validator)
            kind.check_schema(self._schema)
        except (jsonschema.SchemaError, TypeError, ValueError, AttributeError, RecursionError) as error:
            told = clip(str(getattr(error, "message", error)))
            raise ConfigError(f"JsonSchemaVerifier: schema is not a JSON Schema: {told}; correct it") from error
        self.schema = schema
        self._seconds = number("JsonSchemaVerifier: seconds", seconds, above=0)

    def __repr__(self) -> str:
        return f"JsonSchemaVerifier({clip(str(self.schema), 60)}, name={self.name!r})"

    def _judge(self, value: Any, source: str) -> tuple[list[str], str]:
        job = {"op": "schema", "schema": self._schema, "value": value, "most": _FED}
        reply = ask("validation", job, seconds=self._seconds)
        errors = [reply] if isinstance(reply, str) else reply["errors"]
        return errors, _dump(value)


class PydanticVerifier(_JsonVerifier):
    """Passes when the JSON in the text is valid for ``model``; the answer is the validated value as JSON.

    Args:
        model: a Pydantic model, or any type that Pydantic can validate (``list[int]``).
        strict: no coercion (``"7"`` is no int); None leaves it to the model.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> PydanticVerifier(list[int]).verify(Step.of("Three numbers?"), Rollout("[1, 2, 3]")).passed
        True
    """

    def __init__(self, model: Any, *, strict: bool | None = None, name: str = "pydantic") -> None:
        super().__init__(name)
        if isinstance(model, BaseModel):
            raise ConfigError(f"PydanticVerifier: model is an instance of {type(model).__name__}; give the class")
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(model)
        except (PydanticUserError, TypeError) as error:
            raise ConfigError(
                f"PydanticVerifier: model is {model!r}; give a Pydantic model or a type that it can validate"
            ) from error
        self.model = model
        self._strict = strict

    def __repr__(self) -> str:
        return f"PydanticVerifier({getattr(self.model, '__name__', self.model)}, name={self.name!r})"

    def _judge(self, value: Any, source: str) -> tuple[list[str], str]:
        try:
            # From the text, not from the parsed value: JSON mode knows that a date is a string there.
            valid = self._adapter.validate_json(source, strict=self._strict)
        except ValidationError as error:
            return [
                f"at {'.'.join(str(part) for part in one['loc']) or 'the top'}: {one['msg']}{_got(one['input'])}"
                for one in error.errors(include_url=False, include_context=False)
            ], _dump(value)
        return [], _dump(json.loads(self._adapter.dump_json(valid)))


def _got(value: Any) -> str:
    """What stood there, where it is short: a whole object would say nothing."""
    return "" if isinstance(value, (dict, list)) else f" (got {clip(json.dumps(value, default=str), 60)})"


def _candidates(text: str) -> Iterator[str]:
    """Where the JSON may be, likeliest first."""
    whole = text.strip()
    if not whole:
        return
    yield whole
    fences = re.split(r"^[ \t]*```[^\n]*$", whole, flags=re.MULTILINE)
    # Odd pieces are inside fences; the last may have been cut off before its closing one.
    for piece in fences[1::2][: -_TRIES - 1 : -1]:
        if piece.strip():
            yield piece.strip()
    starts = [m.start(1) for m in re.finditer(r"^[ \t]*([\[{])", whole, flags=re.MULTILINE)]
    yield from _balanced(whole, set(starts))
    yield from _balanced(whole, None)


def _balanced(text: str, starts: set[int] | None) -> Iterator[str]:
    """The outermost bracketed pieces of ``text``, last first; only those that begin at ``starts``, if given."""
    pieces: list[tuple[int, int]] = []
    depth, begin = 0, -1
    for token in _STRUCTURE.finditer(text):
        if token[0] in ("[", "{"):
            if depth == 0:
                if starts is not None and token.start() not in starts:
                    continue
                begin = token.start()
            depth += 1
        elif token[0] in ("]", "}") and depth:
            depth -= 1
            if depth == 0:
                pieces.append((begin, token.end()))
    for begin, end in pieces[: -_TRIES - 1 : -1]:
        yield text[begin:end]


def _load(source: str) -> Any:
    depth = 0
    for token in _STRUCTURE.finditer(source):
        if token[0] in ("[", "{"):
            depth += 1
            if depth > _DEPTH:
                raise ValueError(f"nested more than {_DEPTH} levels deep")
        elif token[0] in ("]", "}"):
            depth -= 1
    return json.loads(source, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {clip(twice, 50)!r} stands twice in one object")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{clip(digits, 50)} is too large a number")
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
