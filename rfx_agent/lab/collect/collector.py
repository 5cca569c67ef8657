"""Collect a dataset of failures: problems × models × remedies, resumable after a kill at any moment.

Problems are screened with one draw each. Those that fail are drawn again, given to the tool, measured by both models
and steered by every operator. Units of one kind run together over all problems, so that a sampler that batches
concurrent calls has something to batch.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from rfx_agent.lab.collect.assemble import assemble
from rfx_agent.lab.collect.journal import Journal
from rfx_agent.lab.collect.plan import Plan
from rfx_agent.lab.collect.run import Progress, Run
from rfx_agent.lab.dataset import Dataset, DatasetError, write_dataset

__all__ = ["Plan", "Progress", "acollect", "collect", "finish"]


def collect(
    plan: Plan, folder: str | os.PathLike[str], *, progress: Callable[[Progress], None] | None = None
) -> Dataset:
    """``acollect`` for code without an event loop."""
    return asyncio.run(acollect(plan, folder, progress=progress))


async def acollect(
    plan: Plan, folder: str | os.PathLike[str], *, progress: Callable[[Progress], None] | None = None
) -> Dataset:
    """Do what of ``plan`` the journal in ``folder`` does not hold yet, and write the dataset.

    The same plan asks the same of its models in every run; a run that is killed and started again loses and repeats
    nothing that was recorded.

    Args:
        plan: what to collect.
        folder: the dataset's; the journal lies in it too.
        progress: called as units are recorded, about five times a second at most, and at both ends of a phase.

    Raises:
        ConfigError: the folder was begun under another plan (names what differs) or is in use.
        DatasetError: it cannot be written, a full disk included; what was recorded is kept.
        VerifierError: a verifier broke; names the problem.
        SamplerError: a model could not be reached any more; what was recorded is kept.
    """
    with Journal(Path(folder)) as journal:
        journal.begin(plan.fingerprint())
        await Run(plan, journal, progress).everything()
    return finish(folder)


def finish(folder: str | os.PathLike[str]) -> Dataset:
    """Write the dataset from what the journal in ``folder`` holds; needs no model, and no collection to be over.

    Problems that are not complete are left out and counted in the provenance under ``partial``.

    Raises:
        DatasetError: there is no journal, nothing was recorded, or the files cannot be written.
    """
    with Journal(Path(folder), write=False) as journal:
        plan, records = journal.plan(), journal.records()
    if plan is None:
        raise DatasetError(f"{os.fspath(folder)}: the journal is empty; collect first")
    rows = assemble(plan, records)
    return write_dataset(folder, rows.rollouts, rows.failures, rows.provenance)
