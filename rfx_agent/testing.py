"""Doubles for users' own tests: a scripted sampler, verifier and tool. They keep the ports' contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rfx_agent.errors import ConfigError, SamplerError, ToolInputError
from rfx_agent.ports import Sampler, Tool, Verifier
from rfx_agent.records import Message, Rollout, SampleRequest, SampleResult, Spend, Step, ToolResult, Usage, Verdict

__all__ = ["ScriptedSampler", "ScriptedTool", "ScriptedVerifier"]


class ScriptedSampler(Sampler):
    """Gives its texts in order, whatever it is asked, and remembers the requests.

    A text may also be an exception, raised when its turn comes, or a whole ``Rollout``. It counts one token a word.

    Args:
        texts: what to give; when they are used up, ``last`` or a ``SamplerError``.
        last: what to give from then on.
        continues_prefix: whether it takes a prefix.

    Example:
        >>> sampler = ScriptedSampler(["6", "7"])
        >>> [sampler.sample(SampleRequest(({"role": "user", "content": "3 + 4?"},))).rollouts[0].text for _ in "12"]
        ['6', '7']
    """

    name = "scripted"

    def __init__(
        self,
        texts: Iterable[str | Rollout | Exception],
        *,
        last: str | None = None,
        continues_prefix: bool = False,
    ) -> None:
        self._texts = list(texts)
        self._last = last
        self.continues_prefix = continues_prefix
        self.requests: list[SampleRequest] = []

    def __repr__(self) -> str:
        return f"ScriptedSampler({len(self._texts)} texts left, last={self._last!r})"

    def sample(self, request: SampleRequest) -> SampleResult:
        """The next ``request.n`` texts."""
        self.requests.append(request)
        made = []
        for i in range(request.n):
            item = self._texts.pop(0) if self._texts else self._last
            if item is None:
                raise SamplerError(f"{self.name}: asked for more texts than it was given", calls=1)
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                text = (request.prefix or "") + item
                usage = Usage(0 if i else 10, len(item.split()), 0 if i else 1)
                item = Rollout(text, response_id=f"scripted-{len(self.requests)}:{i}", usage=usage)
            made.append(item)
        total = sum((x.usage for x in made), Usage())
        return SampleResult(tuple(made), total)

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        return self.sample(request)


class ScriptedVerifier(Verifier):
    """Passes the texts that ``passes`` accepts, of what follows the thinking; the answer is that, stripped.

    Args:
        passes: the accepted texts, or a function of the text.
        weak: what its verdicts say of themselves.

    Example:
        >>> ScriptedVerifier(["7"]).verify(Step.of("3 + 4?"), Rollout("7")).passed
        True
    """

    name = "scripted"
    instant = True

    def __init__(self, passes: Sequence[str] | Callable[[str], bool], *, weak: bool = False) -> None:
        self._passes = passes if callable(passes) else set(passes).__contains__
        self._weak = weak
        self.judged: list[str] = []

    def __repr__(self) -> str:
        return f"ScriptedVerifier(weak={self._weak}, judged={len(self.judged)})"

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Judge by the text alone."""
        self.judged.append(rollout.text)
        text = rollout.said.strip()
        return Verdict(bool(self._passes(text)), answer=text or None, weak=self._weak)

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        return self.verify(step, rollout, peers=peers)


class ScriptedTool(Tool):
    """A tool whose input is the model's whole text, and whose results come from a mapping of input to answer.

    Args:
        results: answer per input; an input that is not in it fails.

    Example:
        >>> ScriptedTool({"3 + 4": 7}).run("3 + 4").answer
        '7'
    """

    name = "scripted"
    bound = Spend(tool_seconds=1.0)

    def __init__(self, results: dict[str, Any]) -> None:
        if not isinstance(results, dict):
            raise ConfigError(f"scripted tool: results is {results!r}; give a dict from input to answer")
        self._results = results
        self.prompts: list[tuple[Message, ...]] = []

    def __repr__(self) -> str:
        return f"ScriptedTool({len(self._results)} results)"

    def prompt(self, step: Step, *, prefix: str | None = None) -> tuple[Message, ...]:
        """The step's own prompt, with the prefix behind it."""
        messages = (*step.messages, {"role": "user", "content": f"Use the tool. {prefix or ''}".strip()})
        self.prompts.append(messages)
        return messages

    def repair(self, step: Step, source: str, result: ToolResult) -> tuple[Message, ...]:
        """The step's own prompt, with the error behind it."""
        messages = (*step.messages, {"role": "user", "content": f"{source} failed: {result.error}"})
        self.prompts.append(messages)
        return messages

    def parse(self, text: str) -> str:
        """The text; an empty one is no input."""
        if not text.strip():
            raise ToolInputError("the model wrote nothing")
        return text.strip()

    def run(self, source: str) -> ToolResult:
        """The scripted answer."""
        if source not in self._results:
            return ToolResult(None, error=f"KeyError: {source!r}")
        return ToolResult(str(self._results[source]))

    async def arun(self, source: str) -> ToolResult:
        """Do what ``run`` does, without blocking the event loop."""
        return self.run(source)
