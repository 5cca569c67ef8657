"""Verifiers of structured output: the text holds JSON that fits a schema or a Pydantic model."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from rfx_agent._collector import collector_paused
from rfx_agent.checks import MOST_SECONDS, flags, number, shown, whole
from rfx_agent.errors import ConfigError
from rfx_agent.records import Kind, Rollout, Step, Verdict
from rfx_agent.verifiers.base import NamedVerifier, clip, shorten
from rfx_agent.verifiers.worker import ask

__all__ = ["JsonSchemaVerifier", "PydanticVerifier"]

_DEPTH = 100  # nesting of JSON that is parsed; Python's parser and the validators recurse
_LONGEST = 200_000  # characters of a text that is judged
_SHOWN = 3  # errors named in a reason
_FED = 8  # errors that a model is told
_TOLD = 400  # characters of each
_TRIES = 50  # places in a text where JSON is looked for
_OPENING = re.compile(r"[\[{]")
_BEGINS = re.compile(r"\{\s{0,20}\"|\[\s{0,20}[\[{\"]")
_CITATION = re.compile(r"\[\d{1,3}(?:\s?[,-]\s?\d{1,3})*\]")
# A string, closed or not, so that each character is looked at once; JSON's strings do not span lines.
_STRUCTURE = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|[\[\]{}]')


class _JsonVerifier(NamedVerifier):
    """Finds JSON in what the text says after its thinking; what is valid is for the subclasses to say.

    The JSON is the whole text, or a code fence, or a ``{...}`` or ``[...]`` within it. Where there are several, one
    that is valid counts before one that is not, then the likeliest: the whole, the last fence, the last that begins a
    line, the last within a line; a citation mark such as ``[1]`` comes last. Duplicate keys, ``NaN`` and ``Infinity``
    are errors, because readers disagree on what they mean.
    """

    blind = partial = True

    def __init__(self, name: str, longest: int) -> None:
        super().__init__(name)
        self._longest = whole(f"{type(self).__name__}: longest", longest, least=1)

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge ``rollout``."""
        if len(rollout.said) > self._longest:
            told = f"The text has {len(rollout.said):,} characters; JSON is read of at most {self._longest:,}."
            return Verdict(False, reason=told, feedback=told, kind="malformed")
        problem, tried = "the text is empty", False
        best: tuple[list[str], str] | None = None
        ends = time.monotonic() + self._patience()
        for candidate in _candidates(rollout.said):
            try:
                with collector_paused():
                    value = _load(candidate)
            except (ValueError, RecursionError) as error:
                if not tried or problem.startswith(
                    ("not JSON: Expecting value: line 1 column 1", "not JSON: Extra data")
                ):
                    problem, tried = f"not JSON: {clip(str(error))}", True
                continue
            errors, answer = self._judge(value, candidate)
            if not errors:
                return Verdict(True, answer=answer, score=1.0, reason="the JSON is valid")
            if best is None and not (tried and _CITATION.fullmatch(candidate)):
                best = errors, answer
            if time.monotonic() > ends:
                break
        if best is not None:
            errors, answer = best
            reason = "; ".join(clip(error) for error in errors[:_SHOWN])
            more = "; and more" if len(errors) > _SHOWN else ""
            told = "\n".join(f"- {clip(error, _TOLD)}" for error in errors[:_FED])
            feedback = f"The JSON is not valid.\n{told}"
            return Verdict(False, shorten(answer), 0.0, reason + more, feedback=feedback, kind="malformed")
        looks = tried and any(c in rollout.said for c in "[{")
        kind: Kind = "malformed" if looks else "no_answer"
        return Verdict(False, reason=problem, feedback=f"No valid JSON was found in the text: {problem}.", kind=kind)

    def _patience(self) -> float:
        """Seconds after which no further piece of the text is looked at."""
        return 5.0

    def _judge(self, value: Any, source: str) -> tuple[list[str], str]:
        """Errors, each with its place, what was expected and what stood there; and the canonical JSON."""
        raise NotImplementedError


class JsonSchemaVerifier(_JsonVerifier):
    """Passes when the JSON in the text is valid under ``schema``; the answer is the JSON in a canonical form.

    The schema's own ``$schema`` names the dialect, 2020-12 otherwise; references to other documents are refused, never
    fetched. Validation runs in a helper process that is killed after ``seconds``: a ``pattern`` or ``uniqueItems``
    takes hours on JSON that a model can write. Validation that is killed is a "no" with that reason.

    Args:
        schema: a JSON Schema.
        seconds: time for one validation.
        longest: characters of a text that is judged; a longer one does not pass, and the reason says so. Reading
            holds the interpreter's lock, and so a server's event loop: some 15 ms at the default.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work; the extra ``schema`` is not installed.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> verifier = JsonSchemaVerifier({"required": ["total"]})
        >>> verifier.verify(Step.of("The total as JSON?"), Rollout('{"total": 7}')).answer
        '{"total":7}'
    """

    def __init__(
        self,
        schema: Mapping[str, Any] | bool,
        *,
        seconds: float = 5.0,
        longest: int = _LONGEST,
        name: str = "json_schema",
    ) -> None:
        super().__init__(name, longest)
        if importlib.util.find_spec("jsonschema") is None:
            raise ConfigError("JsonSchemaVerifier: jsonschema is not installed; pip install 'rfx-agent[schema]'")
        jsonschema = importlib.import_module("jsonschema")
        given: Any = schema
        if not isinstance(given, (Mapping, bool)):
            give = f"PydanticVerifier({given.__name__})" if isinstance(given, type) else "a JSON Schema as a mapping"
            raise ConfigError(f"JsonSchemaVerifier: schema is {shown(given)}; give {give}")
        try:
            self._schema = json.loads(json.dumps(schema))
            kind = jsonschema.validators.validator_for(self._schema, default=jsonschema.Draft202012Validator)
            kind.check_schema(self._schema)
        except (jsonschema.SchemaError, TypeError, ValueError, AttributeError, RecursionError) as error:
            told = clip(str(getattr(error, "message", error)))
            raise ConfigError(f"JsonSchemaVerifier: schema is not a JSON Schema: {told}; correct it") from error
        self.schema = schema
        self._seconds = number("JsonSchemaVerifier: seconds", seconds, above=0, most=MOST_SECONDS)

    def __repr__(self) -> str:
        return f"JsonSchemaVerifier({clip(str(self.schema), 60)}, name={self.name!r})"

    def _patience(self) -> float:
        return self._seconds

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
        longest: as of ``JsonSchemaVerifier``.
        name: what the verifier is called in records.

    Raises:
        ConfigError: a parameter that cannot work.

    Example:
        >>> from rfx_agent.records import Rollout, Step
        >>> PydanticVerifier(list[int]).verify(Step.of("Three numbers?"), Rollout("[1, 2, 3]")).passed
        True
    """

    def __init__(
        self, model: Any, *, strict: bool | None = None, longest: int = _LONGEST, name: str = "pydantic"
    ) -> None:
        super().__init__(name, longest)
        if isinstance(model, Mapping):
            raise ConfigError(
                f"PydanticVerifier: model is {shown(model)}; give a Pydantic model or another type, and a "
                "JSON Schema to JsonSchemaVerifier"
            )
        if isinstance(model, BaseModel):
            raise ConfigError(f"PydanticVerifier: model is an instance of {type(model).__name__}; give the class")
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(model)
        except Exception as error:
            raise ConfigError(
                f"PydanticVerifier: model is {shown(model)}; give a Pydantic model or a type that Pydantic can validate"
            ) from error
        if strict is not None:
            flags("PydanticVerifier", strict=strict)
        self.model = model
        self._strict = strict

    def __repr__(self) -> str:
        return f"PydanticVerifier({getattr(self.model, '__name__', self.model)}, name={self.name!r})"

    def _judge(self, value: Any, source: str) -> tuple[list[str], str]:
        with collector_paused():
            return self._validated(value, source)

    def _validated(self, value: Any, source: str) -> tuple[list[str], str]:
        try:
            # From the text, not from the parsed value: JSON mode knows that a date is a string there.
            valid = self._adapter.validate_json(source, strict=self._strict)
        except ValidationError as error:
            return [
                f"at {_place(one['loc'])}: {one['msg']} (got {_got(one['input'], missing=one['type'] == 'missing')})"
                for one in error.errors(include_url=False, include_context=False)
            ], _dump(value)
        made = self._adapter.dump_python(valid, mode="json")
        if odd := next(_not_finite(made, ()), None):
            return [f"at {_place(odd[0])}: Input should be a finite number (got {odd[1]})"], _dump(value)
        return [], _dump(json.loads(self._adapter.dump_json(valid)))


def _place(path: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in path) or "the top"


def _got(value: Any, *, missing: bool = False) -> str:
    """What stood there: a plain value, or of which keys or how many items an object or an array is."""
    if isinstance(value, dict):
        keys = ", ".join(clip(str(x), 30) for x in list(value)[:10]) or "none"
        return f"an object with the keys {keys}" if missing else f"an object with {len(value)} keys"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    return clip(json.dumps(value, default=str, ensure_ascii=False), 60)


def _not_finite(value: Any, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _not_finite(inner, (*path, i))


def _candidates(text: str) -> Iterator[str]:
    """Where the JSON may be, likeliest first, each piece once."""
    whole = text.strip()
    if not whole:
        return
    seen: set[str] = set()
    marks: list[str] = []
    for piece in itertools.chain((whole,), _fenced(whole), _pieces(whole), _decoded(whole)):
        if piece in seen:
            continue
        seen.add(piece)
        if _CITATION.fullmatch(piece) and piece != whole:
            marks.append(piece)
        else:
            yield piece
        if len(seen) >= 2 * _TRIES:
            break
    yield from sorted(marks, key=lambda x: x[1:-1].isdigit())  # [4] is likelier a mark than [1, 2]


def _fenced(text: str) -> Iterator[str]:
    fences = re.split(r"^[ \t]*```[^\n]*$", text, flags=re.MULTILINE)
    # Odd pieces are inside fences; the last may have been cut off before its closing one.
    for piece in fences[1::2][: -_TRIES - 1 : -1]:
        if piece.strip():
            yield piece.strip()


def _pieces(text: str) -> Iterator[str]:
    starts = {m.start(1) for m in re.finditer(r"^[ \t]*([\[{])", text, flags=re.MULTILINE)}
    outer = _balanced(text, None)
    held = [(begin, end) for begin, end in outer if _BEGINS.match(text, begin)]
    for begin, end in _balanced(text, starts):
        if not any(one < begin and end < other for one, other in held):  # a part of an answer is none
            yield text[begin:end]
    for begin, end in outer:
        yield text[begin:end]


def _balanced(text: str, starts: set[int] | None) -> list[tuple[int, int]]:
    """The outermost bracketed pieces of ``text``, last first; only those that begin at ``starts``, if given. Quotes
    count within brackets only: outside they are inches, or somebody's speech."""
    pieces: list[tuple[int, int]] = []
    depth, begin, at = 0, -1, 0
    while (token := (_STRUCTURE if depth else _OPENING).search(text, at)) is not None:
        at = token.end()
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
    return pieces[: -_TRIES - 1 : -1]


def _decoded(text: str) -> Iterator[str]:
    """What a decoder reads from an opening bracket on, last first: for texts with brackets that are no JSON. What
    begins like JSON and breaks off hides what stands within it: a part of an answer is none."""
    decoder = json.JSONDecoder()
    found: list[tuple[int, int]] = []
    ends = dict(_balanced(text, None))
    at = failed = 0
    while failed < _TRIES and (start := _OPENING.search(text, at)) is not None:
        at = start.end()
        try:
            _, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            failed += 1
            if _BEGINS.match(text, start.start()):
                at = ends.get(start.start(), len(text))
        else:
            found.append((start.start(), at))
    for begin, end in found[: -_TRIES - 1 : -1]:
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
    value = json.loads(source, object_pairs_hook=_pairs, parse_float=_float)
    if odd := next(_not_finite(value, ()), None):
        raise ValueError(f"at {_place(odd[0])}: {json.dumps(odd[1])} is no JSON number (expected a finite one)")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {clip(twice, 50)!r} stands twice in one object")
    return made


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{clip(digits, 50)} is too large a number")
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
