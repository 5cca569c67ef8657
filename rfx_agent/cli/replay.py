"""A collected dataset given back as if its model were there: recorded draws, steered decodes and programs, in order.

Evidence, decisions, routes and budgets are the engine's own work on them. What a replay cannot do is answer what was
never recorded: where the attempts of a remedy run out, it says so with ``SamplerError``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rfx_agent.budgets.step import RetryBudget
from rfx_agent.cli.demo import Task
from rfx_agent.cli.tape import Replay, Row, Tape, nothing, rollout_of
from rfx_agent.errors import SamplerError, ToolInputError
from rfx_agent.lab.evidence.outcomes import STEERING
from rfx_agent.ports import Sampler, Steerer, Verifier
from rfx_agent.records import Message, Rollout, SampleRequest, SampleResult, Step, ToolResult, Usage, Verdict
from rfx_agent.recovery import Recovery
from rfx_agent.tools.program import ProgramTool
from rfx_agent.tools.sandbox import Sandbox
from rfx_agent.verifiers.answers import canonical, extract_answer

__all__ = ["ReplaySampler", "ReplaySteerer", "ReplayTool", "ReplayVerifier", "replay_tasks"]


class ReplayTool(ProgramTool):
    """Runs the recorded programs, in the real sandbox.

    What was recorded is what the model had written in the end, its one repair included, so that a program that fails
    here is given back unchanged when its repair is asked for.
    """

    asked: tuple[Message, ...] = ()
    """The latest request for a repair."""

    def repair(self, step: Step, source: str, result: ToolResult) -> tuple[Message, ...]:
        """As the tool's own, remembered."""
        self.asked = super().repair(step, source, result)
        return self.asked

    def parse(self, text: str) -> str:
        """The text as it is: it was parsed when it was recorded."""
        if not text.strip():
            raise ToolInputError("nothing was recorded; the attempt counts as a miss")
        return text


class ReplaySampler(Sampler):
    """Gives one problem's recorded attempts, each once, in order.

    A request for an answer gets ``retry`` draws, one for the tool's input gets a program. Nothing else was recorded of
    this model, so it can be told of no failed answer and goes on from none.

    Args:
        tape: the problem.
        tool: what asks for programs.
        name: the model that was recorded.
        skip: ``retry`` draws that were had before.
    """

    takes_max_tokens = takes_revision = False

    def __init__(self, tape: Tape, tool: ReplayTool, *, name: str, skip: int = 0) -> None:
        self.name = name
        self.program: Row | None = None
        self._tape, self._tool = tape, tool
        self._next = {"retry": skip}

    def sample(self, request: SampleRequest) -> SampleResult:
        """The next ``request.n`` recorded attempts, fewer where no more are left.

        Raises:
            SamplerError: none is left.
        """
        if request.messages == self._tool.asked and self.program is not None:
            return SampleResult((Rollout(self.program["text"]),), Usage())  # its cost was counted with the attempt
        remedy = "tool" if request.purpose == "tool_input" else "retry"
        rows = [row for row in self._tape.attempts.get(remedy, ()) if remedy == "tool" or not nothing(row)]
        at = self._next.get(remedy, 0)
        given = rows[at : at + request.n]
        if not given:
            raise SamplerError(
                f"{self.name}: no more than {len(rows)} {remedy} attempts at {self._tape.step.id} were recorded; "
                "run it live, without --replay"
            )
        self._next[remedy] = at + len(given)
        if remedy == "tool":
            self.program = given[-1]
        rollouts = tuple(rollout_of(row) for row in given)
        return SampleResult(rollouts, sum((x.usage for x in rollouts), Usage()))

    async def asample(self, request: SampleRequest) -> SampleResult:
        """Do what ``sample`` does, without blocking the event loop."""
        return self.sample(request)


class ReplaySteerer(Steerer):
    """Gives one problem's recorded steered decodes, each once, in order, whichever failed draw is to be steered.

    ``local_temp`` is one of them: it went on from the junction of some failed draw when it was recorded.

    Args:
        tape: the problem.
        name: the pair that was recorded.
    """

    def __init__(self, tape: Tape, *, name: str) -> None:
        self.name = name
        self.operators = tuple(op for op in STEERING if tape.attempts.get(op))
        self._tape = tape
        self._next: dict[str, int] = {}

    def steer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Return the next recorded draw that was steered by ``operator``.

        Raises:
            SamplerError: it failed when it was recorded, or none is left.
        """
        rows, at = self._tape.attempts.get(operator, ()), self._next.get(operator, 0)
        if at >= len(rows):
            raise SamplerError(f"{self.name}: no more than {len(rows)} {operator} attempts at {step.id} were recorded")
        self._next[operator] = at + 1
        if nothing(rows[at]):
            raise SamplerError(f"{self.name}: as recorded: {rows[at]['error']}")
        made = rollout_of(rows[at])
        return SampleResult((made,), made.usage)

    async def asteer(self, step: Step, operator: str, rollout: Rollout, request: SampleRequest) -> SampleResult:
        """Do what ``steer`` does, without blocking the event loop."""
        return self.steer(step, operator, rollout, request)


class ReplayVerifier(Verifier):
    """Gives the recorded verdict of each attempt: the problems' own scorers are no part of the package.

    What the sandbox made of a program now must be what was recorded of it; anything else is a no.

    Args:
        tape: the problem.
        sampler: gave the program whose result is to be judged.
    """

    name = "recorded verdicts"
    needs_peers = False

    def __init__(self, tape: Tape, sampler: ReplaySampler) -> None:
        self._sampler = sampler
        self._rows = {rollout_of(row).response_id: row for rows in tape.attempts.values() for row in rows}

    def verify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """The recorded verdict."""
        row = self._sampler.program if rollout.remedy == "tool" else self._rows.get(rollout.response_id)
        if row is None:
            return Verdict(False, reason="this attempt was not recorded")
        if rollout.remedy == "tool" and row["passed"] and not _same(rollout.text, row["answer"] or ""):
            return Verdict(False, answer=rollout.text, reason="the program gives something else than was recorded")
        return Verdict(row["passed"], answer=row["answer"], score=row["score"], reason="as recorded")

    async def averify(self, step: Step, rollout: Rollout, *, peers: Sequence[Rollout] = ()) -> Verdict:
        """Do what ``verify`` does, without blocking the event loop."""
        return self.verify(step, rollout, peers=peers)


def replay_tasks(replay: Replay, *, problems: int, seed: int) -> list[Task]:
    """Both arms of a seeded choice of ``problems``, spread over the generators.

    The budget is the default one without its caps on time, so that the figures are the same on a slow machine. The
    plain-retry arm goes on with the recorded draws after those that both arms start from.
    """
    sandbox = Sandbox()
    return [_task(replay, tape, sandbox, seed) for tape in replay.choose(problems, seed)]


def _task(replay: Replay, tape: Tape, sandbox: Sandbox, seed: int) -> Task:
    temperature = float(replay.settings["temperature"])

    def arm(skip: int) -> Recovery:
        tool = ReplayTool(sandbox=sandbox)
        sampler = ReplaySampler(tape, tool, name=replay.model, skip=skip)
        steerer = ReplaySteerer(tape, name=replay.model)
        return Recovery(
            sampler=sampler,
            verifier=ReplayVerifier(tape, sampler),
            tool=tool if tape.attempts.get("tool") else None,
            steerer=steerer if steerer.operators else None,
            calibration=replay.calibration,
            budget=RetryBudget(seconds=None, tool_seconds=None),
            seed=seed,
            temperature=temperature,
            max_tokens=int(replay.settings["max_tokens"]),
        )

    return Task(tape.family, tape.step, arm(0), arm(1))


def _same(text: str, recorded: str) -> bool:
    """Whether a program's result says what was recorded. A scorer may have recorded it in a plainer spelling."""
    stated = extract_answer(text) or next((x for x in reversed(text.splitlines()) if x.strip()), "")
    if canonical(stated) == canonical(recorded):
        return True
    part = re.escape(recorded.casefold().replace(",", ""))
    return re.search(rf"(?<!\w){part}(?!\w)", stated.casefold().replace(",", "")) is not None
