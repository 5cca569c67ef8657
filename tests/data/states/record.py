# ruff: noqa: I001  # imports in the order of a checkout of version 0.1, where each of them is there
"""Records states as version 0.1 leaves them, and what that version makes of them. Kept as provenance.

Written for version 0.1 and run against a checkout of it (commit 19e108b). Later versions are held against what it
wrote, so run it again only to add to that. From the root of this repository, with the extras ``production``,
``langchain`` and ``lab`` installed::

    PYTHONPATH=<checkout of version 0.1>:tests python tests/data/states/record.py [FOLDER]

It writes into the folder that it lies in, or into FOLDER. Everything random is seeded but the ids that LangGraph and
the runs make; what a real clock measures (``seconds``, ``tool_seconds``) is left out of the manifest.

Each thread is recorded twice, with LangGraph's ``SqliteSaver`` and with its ``InMemorySaver``, in a process of its own,
which ends by ``os._exit`` where the state is to be that of a process that was killed. Copies of what was packed are
then gone on with, in each of the ways under ``then``; both checkpointers have to give the same, which is what the
manifest has under ``gives``.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import importlib.metadata
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import langgraph.checkpoint.sqlite
import ormsgpack
import states
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.types import Command
from parts import KILLED, Fate, Model, Mortal, graph_of, input_of, options_of, step_of

from rfx_agent import AgreementVerifier, CircuitOpen, FixedPolicy, Recovery, SamplerError, ScoreResult, Step, Usage
from rfx_agent.calibration import Calibration, FeatureStats
from rfx_agent.case import Case, decode, encode
from rfx_agent.engine import answer_human, diagnose, drive, resample, steer, tool_verify
from rfx_agent.events import as_record
from rfx_agent.features import TWO_MODEL, TopLogprobs
from rfx_agent.lab.logs import log_line, read_log
from rfx_agent.limits import Claim
from rfx_agent.policies import Belief, LearnedPolicy
from rfx_agent.stores import SQLPolicyStore, SQLStore

HERE = Path(__file__).resolve().parent
CLOCK = 1_780_000_000.0
"""Unix time at which everything was recorded; a thread's ``at`` is added to it."""

FORK = multiprocessing.get_context("fork")
SAVERS = ("sqlite", "memory")
UNMEASURED = ("seconds", "tool_seconds")  # by a real clock

# What is said in the recorded steps.


def entries(name: str, *texts: str, table: int | None = None) -> list[dict[str, Any]]:
    """A script: each text under a response id of its own; ``table`` seeds the first one's log-probabilities."""
    return [
        {"text": text, "id": f"{name}-{i}", **({} if table is None else {"table": table + i})}
        for i, text in enumerate(texts)
    ]


BILL = {
    "id": "till/äpfel-7",
    "messages": [
        {"role": "system", "content": "Du stehst an der Kasse. End with: Answer: <amount>"},
        {"role": "user", "content": "7 Äpfel zu je 1,35 € und 3 Brötchen zu je 0,80 € – 合計はいくらですか? 🍎"},
    ],
    "reference": "11.85",
}
BILL_CANDIDATE = "7 × 1,35 € sind 9,35 €, dazu 3 × 0,80 € = 2,40 €.\nAnswer: 11.75"
BILL_DRAWS = entries(
    "draw",
    "Die Äpfel: 7 × 1,35 € = 9,05 €. Die Brötchen: 2,40 €. Zusammen also 11,45 €.\nAnswer: 11.45",
    "Sieben mal 1,35 € sind 9,35 €; drei Brötchen kosten 2,40 €.\nAnswer: 11.75",
    "りんごは 9,85 €、パンは 2,40 €。合計は 12,25 €。\nAnswer: 12.25",
    table=11,
)
BILL_STEERED = entries("steered", "Sieben Äpfel kosten 9,45 € und die Brötchen 2,50 €.\nAnswer: 11.95")
BILL_PROGRAMS = entries("program", "sum([1.35] * 7", "7 * 1,35 + 3 * 0,80")
BILL_PROGRAMS_AGAIN = entries("program-again", "7 * 1.35 + 3 * 0.85")
BILL_LIFTED = entries("lifted", " ein Teil: 9,45 €, der Rest 2,10 €.\nAnswer: 11.55", " … rund 12 €.\nAnswer: 12")
BILL_MORE = entries("more", "Ich komme auf 11,45 €.\nAnswer: 11.45", "Das macht 11,75 €.\nAnswer: 11.75")
BILL_UNMEASURED = [*BILL_PROGRAMS, *BILL_LIFTED, *BILL_PROGRAMS_AGAIN, *BILL_MORE]
BILL_RIGHT = "Äpfel 9,45 €, Brötchen 2,40 €: zusammen 11,85 €.\nAnswer: 11.85"
BILL_TOOL = {"7 * 1.35 + 3 * 0.85": "12.00", "7 * 1.35 + 3 * 0.80": "11.85"}
BILL_PARTS: dict[str, Any] = {
    "seed": 3,
    "max_tokens": 64,
    "resample_draws": 2,
    "continues_prefix": True,
    "calibrated": True,
    "verifier": {"kind": "exact"},
    "policy": {"kind": "default", "rounds": {"retry": 2, "tool": 2}},
    "tool": BILL_TOOL,
    "steers": ["dense_steer"],
    "price": {"prompt": 0.25, "completion": 1.5},
    "budget": {"attempts": 14, "usd": 0.05},
    "escalation": {"deadline": 86_400.0, "default": "approve"},
}
"""Routes to dense_steer by the rule, then twice to the tool, to local_temp, to retry, and to a person."""

BILL_ALL = {
    "sampler": [*BILL_DRAWS, *BILL_PROGRAMS, *BILL_PROGRAMS_AGAIN, *BILL_LIFTED, *BILL_MORE],
    "steerer": BILL_STEERED,
}

SIX = {"id": "six-by-seven", "messages": [{"role": "user", "content": "What is 6 times 7?"}]}
SIX_PARTS: dict[str, Any] = {
    "seed": 7,
    "max_tokens": 32,
    "resample_draws": 2,
    "verifier": {"kind": "passes", "texts": ["42"]},
    "policy": {"kind": "default", "rounds": {"retry": 1, "tool": 1}},
    "tool": {"6*7": 42, "6+7": 13},
    "escalation": {"deadline": None},
}
"""Routes to the tool, to local_temp, and to a person."""

SIX_DRAWS = entries("draw", "40", "43", "44")
SIX_PROGRAMS = entries("program", "6x7", "6+7")
SIX_LIFTED = entries("lifted", "1", "2")
SIX_ALL = {"sampler": [*SIX_DRAWS, *SIX_PROGRAMS, *SIX_LIFTED]}
LEARNED_ALL = {"sampler": [*SIX_PROGRAMS, *entries("program-again", "6", "6+7"), *SIX_LIFTED]}
LEARNED_PARTS = {
    **SIX_PARTS,
    "policy": {
        "kind": "learned",
        "explore": 0,
        "per_round": {"local_temp": 2},
        "worth": {"attempt": {"tool": 3.0}, "otherwise": 0.5},
    },
}
"""Routes to the tool twice, to local_temp, and to a person, because nothing is worth its cost."""

# What is done with a thread: ``put`` its input into a checkpoint, ``run`` on an input, ``go on``, ``resume``, ``read``.

APPROVE = {"decisions": [{"type": "approve"}]}
REJECT = {"decisions": [{"type": "reject", "message": "The customer has left. – 失礼します"}]}
RESPOND = {"type": "respond", "message": "Bitte an Kasse 2: 11,85 €."}
BLANK = {"decisions": [{"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": " "}}}]}


def edit(answer: str) -> dict[str, Any]:
    """A person's reply that gives another answer."""
    return {"decisions": [{"type": "edit", "edited_action": {"name": "accept_answer", "args": {"answer": answer}}}]}


def then(name: str, do: str, *, script: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One way to go on with a thread: what is done, what its doubles say, and when (``at``, after the recording)."""
    return {"name": name, "do": do, "script": script or {}, "at": 60.0, **more}


RUN_BILL = {"step": BILL, "candidate": BILL_CANDIDATE}
RUN_SIX = {"step": SIX, "candidate": "41"}
REPLIES = [
    then("approve", "resume", reply=APPROVE),
    then("edit", "resume", reply=edit("11.85")),
    then("reject", "resume", reply=REJECT),
    then("respond", "resume", reply=RESPOND),
]
LATE = then("late", "resume", reply=APPROVE, at=2 * 86_400.0)
AGAIN = [
    then("read", "read"),
    then("again", "run", input=RUN_BILL, script={"sampler": entries("again", BILL_RIGHT, "Answer: 1", "Answer: 2")}),
]
RUN_TALK = {"asks": "Was kosten 7 Äpfel zu 1,35 €?", "id": "asked-1", "expected": "9.45"}
TALK_PARTS = {
    **SIX_PARTS,
    "verifier": {"kind": "exact"},
    "says": {"text": "Das sind 9,35 €.\nAnswer: 9.35", "id": "said-1"},
    "tool": {"7*1.35": "9.45", "7*1.25": "8.75"},
    "extra_samples": 2,
}
TALK_DRAWS = entries("draw", "Answer: 9.05", "Answer: 9.35")
TALK_ALL = {
    "sampler": [
        *TALK_DRAWS,
        *entries("program", "7*1.25"),
        *entries("lifted", "Answer: 9.4", "Answer: 9"),
    ]
}
AGENT_PARTS: dict[str, Any] = {
    **LEARNED_PARTS,
    "verifier": {"kind": "passes", "texts": ["9,45 €", "11,85 €"]},
    "tool": {"7*1.35": "9,45 €", "9.45+2.40": "11,85 €"},
    "extra_samples": 2,
    "budget": {"attempts": 8, "tokens": 4_000},
    "middleware": {"interrupts": True, "on_unresolved": "return"},
    "escalation": {"deadline": 3_600.0},
}
AGENT_FIRST = {"asks": "Was kosten 7 Äpfel? 🍎", "id": "asked-1"}
AGENT_SECOND = {"asks": "Und mit 3 Brötchen zu 0,80 €?", "id": "asked-2"}
SHELF = {"name": "shelf", "args": {"item": "Apfel"}, "id": "call-1"}
SHARED: dict[str, Any] = {
    "scopes": {"tenant": "bäckerei", "model": "small-1"},
    "limits": [
        ["window", {"scope": "tenant", "unit": "usd", "most": 5.0, "per": "day"}],
        ["window", {"scope": "tenant", "unit": "escalations", "most": 20, "per": "day"}],
        ["window", {"scope": "global", "unit": "tokens", "most": 100_000, "per": "hour"}],
        ["window", {"scope": "tenant", "unit": "attempts", "most": 3, "per": "minute", "key": "kiosk"}],
        ["ratio", {"scope": "model", "unit": "tokens", "share": 0.2, "floor": 20_000, "per": "minute"}],
        ["in_flight", {"scope": "global", "most": 50}],
    ],
}
JUDGE = {"kind": "judge", "right": "11.85", "rubric": "The total is right.", "seed": 5, "max_tokens": 32}
KIOSK = {**SHARED, "scopes": {"tenant": "kiosk", "model": "small-1"}}
SHARED_PARTS = {**BILL_PARTS, "verifier": JUDGE, "shared": SHARED}

THREADS: dict[str, dict[str, Any]] = {
    "alone-put": {
        "what": "The input is in a checkpoint; killed in the first node, while the extra samples were drawn.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "put", "input": RUN_BILL}, {"do": "go on"}],
        "script": BILL_ALL,
        "dies": "sampler:1",
        "then": [
            then("rescued", "go on", script={"sampler": entries("new", "Answer: 10.45", BILL_RIGHT, "Answer: 9")}),
        ],
    },
    "alone-steer": {
        "what": "Killed while dense_steer was decoded; features of two models, junctions and peaks on the draws.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": BILL_ALL,
        "dies": "steerer:1",
        "then": [then("rescued", "go on", script={"steerer": entries("new", BILL_RIGHT)})],
    },
    "alone-tool": {
        "what": "Killed while the tool ran, in the second round of tool_verify; the first ended in a miss.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": BILL_ALL,
        "dies": "tool:3",
        "then": [
            then("rescued", "go on", script={"sampler": entries("new", "7 * 1.35 + 3 * 0.80")}),
            then(
                "asked",
                "go on",
                script={"sampler": [*entries("new", "7 * 1.35 + 3 * 0.85"), *BILL_LIFTED, *BILL_MORE]},
            ),
        ],
    },
    "alone-resample": {
        "what": "Killed in resample, while local_temp was drawn from the junction.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": BILL_ALL,
        "dies": "sampler:5",
        "then": [
            then(
                "rescued",
                "go on",
                script={"sampler": entries("new", " nein.\nAnswer: 7", " doch 9,45 €.\nAnswer: 11.85")},
            ),
            then("asked", "go on", script={"sampler": [*BILL_LIFTED, *BILL_MORE]}),
        ],
    },
    "alone-paused": {
        "what": "At the interrupt of escalate, after dense_steer, the tool twice, local_temp and retry.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": BILL_ALL,
        "then": [*REPLIES, LATE, then("misfit", "resume", reply=BLANK)],
    },
    "alone-asked-again": {
        "what": "At the same interrupt, asked again because the first reply was a blank answer.",
        "graph": "alone",
        "parts": BILL_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}, {"do": "resume", "reply": BLANK}],
        "script": BILL_ALL,
        "then": [REPLIES[1], REPLIES[2], LATE],
    },
    "alone-finished": {
        "what": "Ended, rescued by the tool in its second round, with a note that it had broken in the first.",
        "graph": "alone",
        "parts": {**BILL_PARTS, "tool_breaks": ["7 * 1,35 + 3 * 0,80"]},
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": {
            "sampler": [*BILL_DRAWS, *BILL_PROGRAMS, *entries("right", "7 * 1.35 + 3 * 0.80")],
            "steerer": BILL_STEERED,
        },
        "then": AGAIN,
    },
    "alone-human": {
        "what": "Ended by a person's edit.",
        "graph": "alone",
        "parts": SIX_PARTS,
        "acts": [{"do": "run", "input": RUN_SIX}, {"do": "resume", "reply": edit("zweiundvierzig")}],
        "script": SIX_ALL,
        "then": [
            then("read", "read"),
            then("again", "run", input={"step": SIX, "candidate": "42"}),
        ],
    },
    "alone-broken": {
        "what": "Broken off by the verifier's exception, which LangGraph keeps beside the checkpoint.",
        "graph": "alone",
        "parts": {**SIX_PARTS, "verifier": {"kind": "breaks"}},
        "acts": [{"do": "run", "input": RUN_SIX}],
        "script": SIX_ALL,
        "raises": "VerifierError",
        "then": [
            then(
                "mended",
                "go on",
                script={"sampler": entries("new", "40", "42", "43")},
                parts={"verifier": {"kind": "passes", "texts": ["42"]}},
            )
        ],
    },
    "alone-learned-tool": {
        "what": "A learned policy; killed in tool_verify, while the model was asked for a program.",
        "graph": "alone",
        "parts": LEARNED_PARTS,
        "acts": [{"do": "run", "input": {"step": SIX}}],
        "script": {"sampler": [*entries("own", "41"), *SIX_DRAWS, *SIX_PROGRAMS]},
        "dies": "sampler:3",
        "then": [
            then("rescued", "go on", script={"sampler": entries("new", "6*7")}),
            then("asked", "go on", script=LEARNED_ALL),
        ],
    },
    "alone-learned-paused": {
        "what": "A learned policy that held nothing left to be worth its cost; at the interrupt.",
        "graph": "alone",
        "parts": LEARNED_PARTS,
        "acts": [{"do": "run", "input": {"step": SIX}}],
        "script": {"sampler": [*entries("own", "41"), *SIX_DRAWS, *LEARNED_ALL["sampler"]]},
        "then": [then("approve", "resume", reply=APPROVE), then("reject", "resume", reply=REJECT)],
    },
    "parent-resample": {
        "what": "As a node of a parent graph; killed in resample.",
        "graph": "parent",
        "parts": SIX_PARTS,
        "acts": [{"do": "run", "input": {"title": "Straße 6", **RUN_SIX}}],
        "script": SIX_ALL,
        "dies": "sampler:4",
        "then": [
            then("rescued", "go on", script={"sampler": entries("new", "39", "42")}),
            then("asked", "go on", script={"sampler": SIX_LIFTED}),
        ],
    },
    "parent-paused": {
        "what": "As a node of a parent graph; at the interrupt.",
        "graph": "parent",
        "parts": SIX_PARTS,
        "acts": [{"do": "run", "input": {"title": "Straße 6", **RUN_SIX}}],
        "script": SIX_ALL,
        "then": REPLIES,
    },
    "behind-resample": {
        "what": "Behind a node, put there by add_recovery; killed in resample.",
        "graph": "behind",
        "parts": TALK_PARTS,
        "acts": [{"do": "run", "input": RUN_TALK}],
        "script": TALK_ALL,
        "dies": "sampler:3",
        "then": [
            then("rescued", "go on", script={"sampler": entries("new", "Answer: 9", "Genau: 9,45 €.\nAnswer: 9.45")}),
            then("asked", "go on", script={"sampler": TALK_ALL["sampler"][3:]}),
        ],
    },
    "behind-paused": {
        "what": "Behind a node, put there by add_recovery; at the interrupt.",
        "graph": "behind",
        "parts": TALK_PARTS,
        "acts": [{"do": "run", "input": RUN_TALK}],
        "script": TALK_ALL,
        "then": REPLIES,
    },
    "around-finished": {
        "what": "Around a node, by recoverable; ended, the outcome under a key of the state.",
        "graph": "around",
        "parts": {**SIX_PARTS, "verifier": {"kind": "exact"}},
        "acts": [{"do": "run", "input": {"question": "6 × 7 = ?", "expected": "42"}}],
        "script": {"node": ["Answer: 41", "Answer: 43", "Answer: 44", "Answer: 45"], "sampler": entries("p", "6*7")},
        "then": [
            then("read", "read"),
            then("again", "run", input={"question": "6 × 7 = ?", "expected": "42"}, script={"node": ["Answer: 42"]}),
        ],
    },
    "around-paused": {
        "what": "Around a node, by recoverable; unresolved, and at an interrupt of the application's own behind it.",
        "graph": "around",
        "parts": {**SIX_PARTS, "verifier": {"kind": "exact"}, "budget": {"samples": 3}},
        "acts": [{"do": "run", "input": {"question": "6 × 7 = ?", "expected": "42"}}],
        "script": {"node": ["Answer: 41", "Answer: 43", "Answer: 44", "Answer: 45"]},
        "then": [then("reviewed", "resume", reply="seen")],
    },
    "agent-finished": {
        "what": "An agent after two runs of its thread: one whose answer passed at once, one that the tool rescued.",
        "graph": "agent",
        "parts": AGENT_PARTS,
        "acts": [{"do": "run", "input": AGENT_FIRST}, {"do": "run", "input": AGENT_SECOND}],
        "script": {"chat": entries("said", "9,45 €", "11,75 €", "11,45 €", "12,25 €", "9.45+2.40")},
        "then": [
            then("read", "read"),
            then(
                "third",
                "run",
                input={"asks": "Nochmal, bitte?", "id": "asked-3"},
                script={"chat": entries("new", "12 €", "11,85 €", "13 €")},
            ),
        ],
    },
    "agent-paused": {
        "what": "An agent whose first run was rescued and whose second waits for a person (rfx_open).",
        "graph": "agent",
        "parts": AGENT_PARTS,
        "acts": [{"do": "run", "input": AGENT_FIRST}, {"do": "run", "input": AGENT_SECOND}],
        "script": {
            "chat": entries(
                "said",
                *("9,35 €", "9,45 €", "9,05 €"),
                *("11,75 €", "11,45 €", "12,25 €", "9.35+2.40", "9.35+2.45", "9.45+2.45", "9.5"),
            )
        },
        "then": [*REPLIES, LATE],
    },
    "agent-tool": {
        "what": "An agent that waits for leave to call a tool, in a run that has spent on recovery already.",
        "graph": "agent",
        "parts": {
            **AGENT_PARTS,
            "asks_before_tools": True,
            "budget": {"attempts": 2, "samples": 4},
            "middleware": {"interrupts": False, "on_unresolved": "return"},
        },
        "acts": [{"do": "run", "input": AGENT_FIRST}],
        "script": {
            "chat": [
                *entries("said", "9,35 €", "9,05 €"),
                {"text": "", "id": "said-2", "tool_calls": [SHELF]},
            ]
        },
        "then": [
            then("accepted", "resume", reply=APPROVE, script={"chat": entries("new", "9,45 €")}),
            then("spent", "resume", reply=APPROVE, script={"chat": entries("new", "9,15 €")}),
        ],
    },
    "shared-sampled": {
        "what": "With a shared budget; killed when the extra samples were paid for, before the checkpoint.",
        "graph": "alone",
        "parts": SHARED_PARTS,
        "acts": [{"do": "put", "input": RUN_BILL}, {"do": "go on"}],
        "script": BILL_ALL,
        # Settled were the verdict on the candidate, then the draws.
        "dies": "settled:2",
        "then": [
            # The draws that are taken up have lost their tables, so the rule has no say.
            then("rescued", "go on", script={"sampler": entries("new", "7 * 1.35 + 3 * 0.80")}),
            then("asked", "go on", script={**BILL_ALL, "sampler": BILL_UNMEASURED}),
        ],
    },
    "shared-ran": {
        "what": "With a shared budget; killed when the tool's run was paid for, before the checkpoint.",
        "graph": "parent",
        "parts": {**SIX_PARTS, "shared": SHARED, "price": BILL_PARTS["price"]},
        "acts": [{"do": "run", "input": {"title": "Straße 6", "step": SIX}}],
        "script": {"sampler": [*entries("own", "41"), *SIX_DRAWS, *entries("program", "6*7")]},
        # Settled were the first draw, the extra draws, the program, and the tool's run.
        "dies": "settled:4",
        "then": [then("rescued", "go on")],
    },
    "shared-paused": {
        "what": "With a shared budget; at the interrupt, its opening recorded.",
        "graph": "alone",
        "parts": SHARED_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}],
        "script": BILL_ALL,
        "then": [REPLIES[0], REPLIES[2]],
    },
    "shared-answered": {
        "what": "With a shared budget; killed when an answer (edit: 11.85) was recorded, before the checkpoint.",
        "graph": "alone",
        "parts": SHARED_PARTS,
        "acts": [{"do": "run", "input": RUN_BILL}, {"do": "resume", "reply": edit("11.85")}],
        "script": BILL_ALL,
        "dies": "kept:1",
        "then": [then("first stands", "resume", reply=REJECT), then("nobody", "go on")],
    },
}

# Runs without a graph, by the id that they can be taken up under; in this order, on one store.
ORDERS: dict[str, dict[str, Any]] = {
    "order-17": {
        "what": "Killed when its second call of the model, the extra draws, was paid for; judged before by a judge.",
        "parts": {**SHARED_PARTS, "calibrated": False},
        "input": {"step": BILL},
        "script": {"sampler": [*entries("own", BILL_CANDIDATE), *BILL_DRAWS]},
        "dies": "settled:3",  # the first draw, the verdict on it, and the extra draws
        "at": 0.0,
        "then": [then("rescued", "go on", script={"sampler": entries("new", "7 * 1.35 + 3 * 0.80")})],
    },
    "order-18": {
        "what": "Killed in mid-call; its hold of five seconds was written off when others looked.",
        "parts": {**SIX_PARTS, "shared": {**SHARED, "seconds": 5.0}, "price": BILL_PARTS["price"]},
        "input": RUN_SIX,
        "script": SIX_ALL,
        "dies": "sampler:1",
        "at": 0.0,
        "then": [then("rescued", "go on", script={"sampler": entries("new", "40", "42", "41")})],
    },
    "order-19": {
        "what": "Ended: dense_steer, the tool and a judge, two-model features; every kind of call is recorded.",
        "parts": SHARED_PARTS,
        "input": RUN_BILL,
        "script": {
            "sampler": [*BILL_DRAWS, *BILL_PROGRAMS, *entries("right", "7 * 1.35 + 3 * 0.80")],
            "steerer": BILL_STEERED,
        },
        "at": 10.0,
        # The draws that are taken up have lost their tables: another decision, and so another call, which is paid for.
        "then": [then("diverges", "go on", script={"sampler": entries("new", "7 * 1.35 + 3 * 0.80")})],
    },
    "order-16": {
        "what": "Ended; taken up again it pays for nothing and asks nobody.",
        "parts": {**SIX_PARTS, "shared": SHARED, "price": BILL_PARTS["price"]},
        "input": {"step": SIX},
        "script": {"sampler": [*entries("own", "41"), *SIX_DRAWS, *SIX_PROGRAMS, *entries("lifted", "2", "42")]},
        "at": 10.0,
        "then": [then("replayed", "go on")],
    },
    "order-20": {
        "what": "The kiosk's account had room for the extra draws and for no more: refused, so it ended unresolved.",
        "parts": {**SIX_PARTS, "shared": KIOSK, "price": BILL_PARTS["price"]},
        "input": RUN_SIX,
        "script": SIX_ALL,
        "at": 10.0,
        "then": [then("refused again", "go on", at=40.0)],
    },
    "order-21": {
        "what": "Killed in mid-call; its hold is open, for ten minutes from its call on.",
        "parts": {**SIX_PARTS, "shared": SHARED, "price": BILL_PARTS["price"]},
        "input": RUN_SIX,
        "script": SIX_ALL,
        "dies": "sampler:1",
        "at": 10.0,
        "then": [then("rescued", "go on", script={"sampler": entries("new", "40", "42", "41")})],
    },
    "order-22": {
        "what": "Killed in mid-call, in the tool; its hold of five seconds is open and overdue, and nobody has looked.",
        "parts": {**SIX_PARTS, "shared": {**SHARED, "seconds": 5.0}, "price": BILL_PARTS["price"]},
        "input": RUN_SIX,
        "script": {"sampler": [*SIX_DRAWS, *entries("program", "6*7")]},
        "dies": "tool:1",
        "at": 12.0,
        "then": [then("rescued", "go on")],
    },
}

# Measured draws.


def table_of(tokens: list[str], rng: random.Random) -> TopLogprobs:
    """A made-up top-K table over ``tokens``, the taken one first or second."""
    ids, rows = [], []
    for _ in tokens:
        weights = sorted((rng.expovariate(1.0) ** 3 for _ in range(6)), reverse=True)
        total = sum(weights) * 1.02
        ids.append(rng.sample(range(500), 6))
        rows.append([max(1e-6, w / total) for w in weights])
    logs = [[round(math.log(p), 6) for p in row] for row in rows]
    return TopLogprobs(ids, logs, [row[0 if rng.random() < 0.8 else 1] for row in ids])


def measured(text: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens and the table of an entry that has a seed for them."""
    if "table" not in entry:
        return {}
    tokens = re.findall(r"(?s).{1,3}", text)
    table = table_of(tokens, random.Random(entry["table"]))  # noqa: S311  # made-up draws, not secrets
    return {"prompt_ids": tuple(range(12)), "tokens": tuple(tokens), "logprobs": table}


class Ancestor:
    """A scorer: the specialist's own tables, shifted by a seed."""

    name = "base-1"

    def score(self, step: Step, rollouts: Any) -> ScoreResult:
        """One table a rollout."""
        tables = []
        for rollout in rollouts:
            own, rng = rollout.logprobs, random.Random(rollout.text)  # noqa: S311  # as above
            logs = [sorted((lp - rng.expovariate(1.2) for lp in row), reverse=True) for row in own.logprobs.tolist()]
            ids = [rng.sample(row, len(row)) if rng.random() < 0.3 else row for row in own.ids.tolist()]
            tables.append(TopLogprobs(ids, logs, own.taken))
        return ScoreResult(tuple(tables), Usage(20 * len(tables), 0, len(tables)), ("base-1 read them in one batch",))

    async def ascore(self, step: Step, rollouts: Any) -> ScoreResult:
        """The same."""
        return self.score(step, rollouts)


CALIBRATION = Calibration(
    name="till-2026",
    pair="small-1 / base-1",
    task="till",
    stats={
        "two_model": {
            "spread": FeatureStats(48, 0.55, 0.1),
            "concentration": FeatureStats(48, 0.8, 0.15),
            "logit_dispersion": FeatureStats(48, -0.75, 0.12),
        }
    },
    priors={**Calibration.published().priors, "tool": (2.0, 3.0)},
    rates={"tool": FeatureStats(48, 0.4, 0.2)},
)
"""Asks for dense_steer on the measured draws: their spread stands out."""

BELIEF = (
    Belief()
    + Belief({((("retry", 2),), "tool"): 6, ((("retry", 3), ("local_temp", 2)), "tool"): 2})
    + Belief({((("retry", 4), ("local_temp", 2), ("tool", 1)), None): 5, ((("retry", 1),), "retry"): 3.5})
)

# Recording.


def child(work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """How a process of its own that did ``work`` ended, and what it gave, or None where it died."""
    ours, theirs = FORK.Pipe(duplex=False)

    def run() -> None:
        theirs.send(work(*args))
        theirs.close()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    theirs.close()
    try:
        gave = ours.recv()
    except EOFError:
        gave = None
    process.join()
    assert process.exitcode is not None
    return process.exitcode, gave


@contextlib.contextmanager
def saver_of(kind: str, folder: Path) -> Iterator[Any]:
    """The checkpointer that the folder has; a memory's one is loaded from what was packed."""
    if kind == "memory":
        yield states.load_memory(folder / "memory.json.gz") if (folder / "memory.json.gz").exists() else InMemorySaver()
        return
    with langgraph.checkpoint.sqlite.SqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
        yield saver


def dump_memory(saver: InMemorySaver) -> dict[str, list[Any]]:
    """Everything in ``saver`` as plain values; ``states.load_memory`` reads it."""

    def typed(pair: tuple[str, bytes]) -> list[str]:
        return [pair[0], base64.b64encode(pair[1]).decode()]

    return {
        "storage": [
            [thread, namespace, checkpoint, typed(value), typed(metadata), parent]
            for thread, namespaces in saver.storage.items()
            for namespace, kept in namespaces.items()
            for checkpoint, (value, metadata, parent) in kept.items()
        ],
        "writes": [
            [list(at), list(key), [task, channel, typed(value), task_path]]
            for at, kept in saver.writes.items()
            for key, (task, channel, value, task_path) in kept.items()
        ],
        "blobs": [[list(key), typed(value)] for key, value in saver.blobs.items()],
    }


def teller(path: Path) -> Callable[[Any], None]:
    """A hook that appends the records of its events to a file, each at once."""

    def tell(event: Any) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_record(event), ensure_ascii=False) + "\n")

    return tell


def record_thread(folder: Path, name: str, kind: str) -> None:
    """Record one thread; in a process of its own."""
    entry, memory = THREADS[name], list[InMemorySaver]()

    def save() -> None:
        for saver in memory:
            (folder / f"{name}.memory.json").write_text(json.dumps(dump_memory(saver)), encoding="utf-8")

    with saver_of(kind, folder) as saver:
        if kind == "memory":
            memory.append(saver)
        fate = Fate(entry.get("dies", ""), save)
        tell = teller(folder / "events.jsonl") if kind == "sqlite" else None
        opened = Opened(entry, saver, folder, entry["script"], CLOCK + 10, fate=fate, on_event=tell, more=measured)
        try:
            for act in entry["acts"]:
                opened.do(name, act)
        except Exception as error:
            if type(error).__name__ != entry.get("raises"):
                raise
        opened.close()
        save()


def go_on(packed: Path, name: str, kind: str, way: Mapping[str, Any]) -> dict[str, Any]:
    """Go on with a copy of a packed thread in one of its ways; in a process of its own. What comes of it."""
    with tempfile.TemporaryDirectory() as place:
        folder, entry = Path(place), THREADS[name]
        copied(packed, folder)
        with saver_of(kind, folder) as saver:
            opened = Opened(entry, saver, folder, way["script"], CLOCK + way["at"], parts=way.get("parts"))
            before = None if opened.store is None else accounts(opened.store)
            opened.do(name, way)
            gives = {"stands": opened.stands(name), "asked": opened.asked()}
            if opened.store is not None and before is not None:
                gives["accounts"] = changed(before, accounts(opened.store))
            opened.close()
            return gives


def copied(packed: Path, folder: Path) -> None:
    """What was packed, unpacked into ``folder``."""
    for name in ("checkpoints.sqlite", "budget.sqlite"):
        (folder / name).write_bytes(gzip.decompress((packed / f"{name}.gz").read_bytes()))
    shutil.copy(packed / "memory.json.gz", folder)


class Opened:
    """A described graph, opened on a checkpointer.

    Args:
        entry: of ``THREADS``.
        saver: the checkpointer.
        folder: where the store of shared budgets is.
        script: what the doubles say.
        now: Unix time.
        more: see ``Model``; and then there is a scorer too.
    """

    def __init__(
        self,
        entry: Mapping[str, Any],
        saver: Any,
        folder: Path,
        script: Mapping[str, Any],
        now: float,
        *,
        fate: Fate | None = None,
        on_event: Any = None,
        more: Any = None,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph, self.parts = entry["graph"], {**entry["parts"], **(parts or {})}
        fate = fate or Fate()
        self.store = store_of(folder, now, fate) if "shared" in self.parts else None
        options = options_of(
            self.parts, script, now=now, fate=fate, store=self.store, calibration=CALIBRATION, belief=BELIEF
        )
        options |= {"on_event": on_event}
        if more is not None and self.parts.get("calibrated"):
            options["scorer"] = Ancestor()
        model = {"fate": fate} if more is None else {"fate": fate, "more": more}
        self.saver = saver
        self.compiled, self.model = graph_of(self.graph, self.parts, script, options, saver, **model)

    def do(self, name: str, act: Mapping[str, Any]) -> Any:
        """One act on the thread."""
        config: Any = {"configurable": {"thread_id": name}}
        match act["do"]:
            case "put":
                return self.compiled.update_state(config, input_of(self.graph, act["input"]), as_node=START)
            case "run":
                return self.compiled.invoke(input_of(self.graph, act["input"]), config, durability="sync")
            case "go on":
                return self.compiled.invoke(None, config, durability="sync")
            case "resume":
                return self.compiled.invoke(Command(resume=act["reply"]), config, durability="sync")
        return None

    def stands(self, name: str) -> dict[str, Any]:
        """How the thread stands, without what is measured and what is drawn anew in each run."""
        state = self.compiled.get_state({"configurable": {"thread_id": name}})
        told: dict[str, Any] = {"next": list(state.next), "keys": sorted(state.values)}
        if state.interrupts:
            (asked,) = state.interrupts
            rfx = asked.value.get("rfx")
            told["asks"] = asked.value if rfx is None else {"rfx": without(rfx), "error": asked.value.get("error")}
        case = self.case(name)
        if case is not None:
            told["case"] = summary(case)
        told |= {key: state.values[key] for key in ("outcome", "answer", "filed", "expected") if key in state.values}
        if "messages" in state.values:
            told["messages"] = [[x.type, x.text] for x in state.values["messages"]]
            told["marks"] = [
                x.response_metadata["rfx"] for x in state.values["messages"] if "rfx" in x.response_metadata
            ]
        for key in ("rfx_run", "rfx_thread"):
            if key in state.values:
                told[key] = without(state.values[key])
        return told

    def case(self, name: str) -> Case | None:
        """The case in the thread's newest checkpoint that has one, whatever its namespace; an agent's open one."""
        found = []
        for one in self.saver.list({"configurable": {"thread_id": name}}):
            values = one.checkpoint["channel_values"]
            kept = values.get("recovery") or (values.get("rfx_open") or {}).get("case")
            if kept:
                found.append((one.checkpoint["id"], kept))
        return decode(Case, max(found, key=lambda x: x[0])[1]) if found else None

    def asked(self) -> Any:
        """What the model was asked since it was opened."""
        if self.graph == "agent":
            return self.model.asked
        return [
            {"n": x.n, "temperature": x.temperature, "seed": x.seed, "prefix": x.prefix} for x in self.model.requests
        ]

    def close(self) -> None:
        """Let go of the store."""
        if self.store is not None:
            self.store.close()


def store_of(folder: Path, now: float, fate: Fate) -> SQLStore:
    """The store of shared budgets, whose clock stands still."""
    store = Mortal(f"sqlite:///{folder / 'budget.sqlite'}", clock=lambda: now)
    store.fate = fate
    return store


def without(record: Any) -> Any:
    """``record`` without what is measured by a real clock, and without ids that are drawn anew in each run."""
    if isinstance(record, Mapping):
        gone = {*UNMEASURED, "id"}
        return {key: without(value) for key, value in record.items() if key not in gone}
    return [without(x) for x in record] if isinstance(record, (list, tuple)) else record


def summary(case: Case) -> dict[str, Any]:
    """What a case comes to."""
    spent = encode(case.ledger.spent)
    return {
        "step": case.step.id,
        "reference": case.step.reference,
        "outcome": None if case.outcome is None else encode(case.outcome),
        "ask": None if case.ask is None else encode(case.ask),
        "spent": {key: value for key, value in spent.items() if key not in UNMEASURED},
        "reserved": encode(case.ledger.reserved),
        "decisions": [[x.route, x.operator, x.regime, x.reason, x.policy, x.evidence] for x in case.decisions],
        "attempts": [[x.operator, x.asked, x.got, x.misses, x.tokens] for x in case.attempts],
        "rollouts": [[x.id, x.operator, x.passed, x.answer, x.junction, x.peak] for x in case.rollouts],
        "blocked": case.blocked_by,
        "notes": list(case.notes),
        "holds": case.holds,
    }


def run_order(folder: Path, name: str, way: Mapping[str, Any]) -> dict[str, Any]:
    """Run one of ``ORDERS`` under its id, on the folder's store; in a process of its own. What comes of it."""
    entry = ORDERS[name]
    recording = way is entry
    fate = Fate(entry.get("dies", "") if recording else "")
    parts, now = entry["parts"], CLOCK + way["at"]
    store = store_of(folder, now, fate)
    before = accounts(store)
    options = options_of(parts, way["script"], now=now, fate=fate, store=store, calibration=CALIBRATION, belief=BELIEF)
    more: dict[str, Any] = {}
    if recording:
        options["on_event"] = teller(folder / "events.jsonl")
        more["more"] = measured
    if recording and parts.get("calibrated"):
        options["scorer"] = Ancestor()
    continues = parts.get("continues_prefix", False)
    model = Model(way["script"].get("sampler", ()), fate=fate, continues_prefix=continues, **more)
    given = entry["input"]
    recovery = Recovery(sampler=model, **options)
    case = recovery.run(step_of(given["step"]), given.get("candidate"), run_id=name)
    gives = {"case": summary(case), "asked": len(model.requests), "accounts": changed(before, accounts(store))}
    store.close()
    return gives


def take_up(packed: Path, name: str, way: Mapping[str, Any]) -> dict[str, Any]:
    """Take one of ``ORDERS`` up again on a copy of the packed store; in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        copied(packed, Path(place))
        return run_order(Path(place), name, way)


def accounts(store: SQLStore) -> dict[str, dict[str, Any]]:
    """Every account, by name."""
    return {x.name: encode(x) for x in store.accounts()}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """How much more each account has granted, spent, lost."""
    counts = ("granted", "spent", "reserved", "lost", "refused")
    more = {
        name: {key: n for key in counts if (n := row.get(key, 0) - before.get(name, {}).get(key, 0))}
        for name, row in after.items()
    }
    return {name: row for name, row in more.items() if row}


def others(folder: Path) -> None:
    """What no run of ours leaves: a hold that was released, an answer alone, a refusal, and beliefs."""
    store = store_of(folder, CLOCK + 10, Fate())
    claims = (Claim("tenant=bäckerei usd/86400s", "window", "usd", 1_000_000, 5 * 10**9, 86_400.0),)
    hold = store.reserve("order-23/0/sample/0123456789ab", claims, seconds=600.0)
    store.release(hold)
    store.keep("order-23/answer", json.dumps({"status": "human", "text": "12 €", "by": "human"}))
    refused = store.reserve(
        "order-24/0/sample/0123456789ab",
        (Claim("tenant=bäckerei usd/86400s", "window", "usd", 6 * 10**9, 5 * 10**9, 86_400.0),),
        seconds=600.0,
    )
    assert refused.accounts == ("tenant=bäckerei usd/86400s",)
    store.close()
    policy = SQLPolicyStore(f"sqlite:///{folder / 'budget.sqlite'}")
    policy.add(BELIEF)
    SQLPolicyStore(f"sqlite:///{folder / 'budget.sqlite'}", name="kiosk").add(Belief().seen({"retry": 1}, "tool"))


# Cases and logs.


class Person:
    """An escalator that gives one reply."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    def escalate(self, payload: Any) -> Any:
        """The reply."""
        return self.reply

    async def aescalate(self, payload: Any) -> Any:
        """The same."""
        return self.reply


def made(parts: Mapping[str, Any], script: Mapping[str, Any], **more: Any) -> Recovery:
    """A recovery without a graph."""
    options = options_of(parts, script, now=CLOCK, fate=Fate(), store=None, calibration=CALIBRATION, belief=BELIEF)
    if parts.get("calibrated"):
        options["scorer"] = Ancestor()
    sampler = more.pop("sampler", None) or Model(
        script.get("sampler", ()), more=measured, continues_prefix=parts.get("continues_prefix", False)
    )
    return Recovery(sampler=sampler, **{**options, **more})


class Down:
    """A sampler that is not there."""

    name = "small-1"
    continues_prefix = False

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self, request: Any) -> Any:
        """Nothing."""
        raise self.error

    async def asample(self, request: Any) -> Any:
        """Nothing."""
        raise self.error


def cases(log: Path) -> dict[str, Any]:
    """Cases at every stage and with every outcome, and one line of a log for each that has ended."""
    found: dict[str, tuple[str, Case]] = {}
    lines: list[str] = []

    def keep(name: str, what: str, case: Case) -> Case:
        found[name] = (what, case)
        if case.outcome is not None:
            named = replace(case, step=replace(case.step, id=f"{case.step.id}/{name}"))
            lines.append(log_line(named, model="small-1 / base-1", task="till"))
        return case

    bill, six = step_of(BILL), step_of(SIX)
    r = made(BILL_PARTS, BILL_ALL)
    case = keep("fresh", "A candidate, and nothing done.", r.start(bill, BILL_CANDIDATE, run_id="run-1"))
    keep("fresh-bare", "No candidate, and nothing done.", r.start(six))
    case = keep("decided", "Decided on, and not yet remedied.", drive(diagnose(r, case, human=True)))
    # To the point between a remedy and the next decision.
    remedies = {"resample": resample, "tool_verify": tool_verify, "steer": steer}
    while case.ask is None:
        case = drive(remedies[case.decision.route](r, case))
        if case.decision.route == "resample" and "midway" not in found:
            keep("midway", "Remedied by local_temp, and not yet decided on again.", case)
        case = drive(diagnose(r, case, human=True))
    keep("escalated", "Before a person, with a deadline.", case)
    for name, reply in (("approve", APPROVE), ("edit", edit("11.85")), ("respond", RESPOND), ("reject", REJECT)):
        keep(f"human-{name}", f"A person answered: {name}.", drive(answer_human(r, case, reply)))
    late = made(BILL_PARTS, {}, clock=lambda: CLOCK + 2 * 86_400)
    keep("human-late", "Nobody answered, and the default approved.", drive(answer_human(late, case, None)))

    def ran(name: str, what: str, r: Recovery, candidate: str | None, step: Step = six) -> None:
        keep(name, what, r.run(step, candidate))

    tool = {"sampler": [*SIX_DRAWS, *entries("program", "6*7")]}
    lifted = {"sampler": [*SIX_DRAWS, *SIX_PROGRAMS, *entries("lifted", "2", "42")]}
    steered = {"sampler": BILL_DRAWS, "steerer": entries("steered", BILL_RIGHT)}
    ran("accepted", "The candidate passed.", made(SIX_PARTS, {}), "42")
    ran("accepted-own", "The first draw passed.", made(SIX_PARTS, {"sampler": entries("own", "42")}), None)
    extra = made(SIX_PARTS, {"sampler": entries("own", "40", "42", "41")})
    ran("rescued-retry", "An extra sample passed; the candidate's long answer was cut.", extra, "41 – nein, " * 30)
    ran("rescued-tool", "The tool's result passed.", made(SIX_PARTS, tool), "41")
    ran("rescued-local_temp", "A draw at a lifted temperature passed.", made(SIX_PARTS, lifted), "41")
    rule = made(BILL_PARTS, steered)
    ran("rescued-dense_steer", "A steered decode passed, as the rule had it.", rule, BILL_CANDIDATE, bill)
    operators: tuple[Any, ...] = ("sparse_steer", "sparse_steer_random")
    for operator in operators:
        fixed = made({**BILL_PARTS, "steers": [operator]}, steered, policy=FixedPolicy((operator,)), scorer=None)
        ran(f"rescued-{operator}", "A fixed policy, features of one model.", fixed, BILL_CANDIDATE, bill)
    ran("rescued-learned", "A learned policy chose the tool.", made(LEARNED_PARTS, tool), "41")
    agreed = AgreementVerifier(share=0.7, min_draws=4)
    weak = made(SIX_PARTS, {"sampler": entries("own", "40", "40", "40")}, verifier=agreed)
    ran("weak", "The draws agree, which is no proof.", weak, "40")
    ran("unresolved-budget", "The cap on samples.", made({**SIX_PARTS, "budget": {"samples": 3}}, SIX_ALL), "41")
    ran("unresolved", "Nothing that could help was left, and nobody could be asked.", made(SIX_PARTS, SIX_ALL), "41")
    gone = Down(SamplerError("small-1: connection refused – ¡ay!", transient=True, calls=2))
    ran("unresolved-down", "The model gave nothing.", made(SIX_PARTS, {}, sampler=gone), "41")
    opened = Down(CircuitOpen("small-1: not asked for 30 s", seconds=30.0))
    ran("unresolved-circuit", "The circuit breaker was open.", made(SIX_PARTS, {}, sampler=opened), "41")
    none = made({**SIX_PARTS, "budget": {"escalations": 0}}, SIX_ALL, escalator=Person(APPROVE))
    ran("unasked", "A person should have been asked: no escalation was left.", none, "41")
    reject = {**SIX_PARTS, "escalation": {"deadline": 60.0, "default": "reject"}}
    ran(
        "rejected-late",
        "Nobody answered, and the default rejected.",
        made(reject, SIX_ALL, escalator=Person(None)),
        "41",
    )
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {
        name: {"what": what, "case": encode(case), "gives": summary(case) | {"amplification": case.amplification}}
        for name, (what, case) in found.items()
    }


# Packing.


def compact(path: Path) -> bytes:
    """An SQLite file as one file, packed."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("VACUUM")
    return gzip.compress(path.read_bytes(), mtime=0)


def merged(folder: Path) -> bytes:
    """The memories of all threads as one, packed."""
    parts = [json.loads((folder / f"{name}.memory.json").read_text()) for name in THREADS]
    whole = {key: [row for part in parts for row in part[key]] for key in ("storage", "writes", "blobs")}
    return gzip.compress(json.dumps(whole).encode(), mtime=0)


def classes(path: Path) -> dict[str, int]:
    """The classes that the recorded checkpoints name, with how often; LangGraph's serializer builds them by path."""
    found: Counter[str] = Counter()

    def hook(code: int, data: bytes) -> Any:
        inner = ormsgpack.unpackb(data, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
        found[f"{inner[0]}.{inner[1]}"] += 1
        return None

    saver = states.load_memory(path)
    typed = [
        *saver.blobs.values(),
        *(value for kept in saver.writes.values() for _, _, value, _ in kept.values()),
        *(x for at in saver.storage.values() for kept in at.values() for row in kept.values() for x in row[:2]),
    ]
    for kind, data in typed:
        if kind == "msgpack":
            ormsgpack.unpackb(data, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
        else:
            found[f"({kind})"] += 1
    return dict(sorted(found.items()))


def rows(packed: Path) -> dict[str, list[Any]]:
    """What the packed store holds: accounts as they are seen at the clock of ``then``, and the state of each hold."""
    with tempfile.TemporaryDirectory() as place:
        copied(packed, Path(place))
        store = store_of(Path(place), CLOCK + 60, Fate())
        seen = [encode(x) for x in store.accounts()]
        store.close()
        with contextlib.closing(sqlite3.connect(Path(place) / "budget.sqlite")) as connection:
            holds = connection.execute("SELECT id, state, record IS NOT NULL FROM rfx_holds ORDER BY id").fetchall()
    named = ("open", "settled", "released", "lost")
    return {"accounts": seen, "holds": [[name, named[state], bool(kept)] for name, state, kept in holds]}


def main(out: Path) -> None:
    """Record everything into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        orders = sorted(ORDERS.items(), key=lambda x: x[1]["at"])
        early = [x for x in orders if x[1]["at"] == 0]
        ended: dict[str, Any] = {}
        for name, entry in early:
            ended[name] = recorded(run_order, folder, name, entry, dies=entry.get("dies", ""))
        for name, entry in THREADS.items():
            for kind in SAVERS:
                recorded(record_thread, folder, name, kind, dies=entry.get("dies", ""))
        recorded(others, folder)
        for name, entry in orders[len(early) :]:
            ended[name] = recorded(run_order, folder, name, entry, dies=entry.get("dies", ""))
        (out / "checkpoints.sqlite.gz").write_bytes(compact(folder / "checkpoints.sqlite"))
        (out / "budget.sqlite.gz").write_bytes(compact(folder / "budget.sqlite"))
        (out / "memory.json.gz").write_bytes(merged(folder))
        events = (folder / "events.jsonl").read_bytes()
        (out / "events.jsonl.gz").write_bytes(gzip.compress(events, mtime=0))
    found = cases(out / "log.jsonl")
    (out / "cases.json.gz").write_bytes(gzip.compress(json.dumps(found, ensure_ascii=False).encode(), mtime=0))
    (out / "belief.json").write_text(BELIEF.to_json() + "\n", encoding="utf-8")
    CALIBRATION.save(out / "calibration.json")
    (out / "calibration.json").chmod(0o644)
    write_manifest(out, ended, Counter(json.loads(line)["type"] for line in events.splitlines()))


def recorded(work: Callable[..., Any], *args: Any, dies: str = "") -> Any:
    """What ``work`` gave in a process of its own, which was to die where ``dies`` says so."""
    code, gave = child(work, *args)
    assert code == (KILLED if dies else 0), (args[1:], code)
    return gave


DOUBLES = {
    "sampler": "named small-1; each entry of a script is a rollout with the entry's id as its response id, after the "
    "request's prefix, 12 tokens read, one a word of the entry written, one call; finish_reason stop",
    "steerer": "named small-1-steered; the same, from its own script",
    "tool": "named till; testing.ScriptedTool of parts.tool; raises ToolError on what is in parts.tool_breaks",
    "judge": "JudgeVerifier of a sampler that repeats the nonce and passes what holds parts.verifier.right; 40 tokens "
    "read and 10 written a verdict",
    "chat": "an agent's model; each entry an AIMessage with its id, tool_calls and usage as above",
    "scorer": "named base-1; only while recording, for no draw that is made later has log-probabilities",
    "graphs": "see parts.py: the names of nodes and keys are part of what is recorded",
}


def write_manifest(out: Path, ended: Mapping[str, Any], events: Mapping[str, int]) -> None:
    """Go on with everything in every way, and write down what comes of it."""
    threads: dict[str, Any] = {}
    for name, entry in THREADS.items():
        look = then("read", "read")
        stands = both_savers(out, name, look)["stands"]
        ways = [{**way, "gives": both_savers(out, name, way)} for way in entry["then"]]
        kept = {key: entry[key] for key in ("what", "graph", "parts", "acts", "dies", "raises") if key in entry}
        threads[name] = {**kept, "stands": stands, "then": ways}
    orders: dict[str, Any] = {}
    for name, entry in ORDERS.items():
        ways = []
        for way in entry["then"]:
            code, gives = child(take_up, out, name, way)
            assert code == 0, name
            ways.append({**way, "gives": gives})
        kept = {key: entry[key] for key in ("what", "parts", "input", "dies", "at") if key in entry}
        orders[name] = {**kept, "ended": ended[name], "then": ways}
    policy = LearnedPolicy(belief=BELIEF)
    tries: list[dict[Any, int]] = [{}, {"retry": 3}, {"retry": 3, "tool": 1}]
    log = [encode(row) for row in read_log(out / "log.jsonl").rows]
    versions = ("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langchain", "langchain-core")
    whole = {
        "about": "States of version 0.1 and what it made of them; see record.py.",
        "version": "0.1.0",
        "made_with": {name: importlib.metadata.version(name) for name in versions},
        "clock": CLOCK,
        "unmeasured": UNMEASURED,
        "doubles": DOUBLES,
        "classes": classes(out / "memory.json.gz"),
        "threads": threads,
        "orders": orders,
        "budget": child(rows, out)[1],
        "belief": {
            "failures": BELIEF.failures,
            "stored": {"default": BELIEF.failures, "kiosk": 1},
            "expected": [[x, policy.expected(x)] for x in tries],
        },
        "calibration": {"name": CALIBRATION.name, "z": CALIBRATION.z(dict.fromkeys(TWO_MODEL, 0.6), "two_model")},
        "log": log,
        "events": dict(sorted(events.items())),
    }
    (out / "manifest.json").write_text(text_of(whole) + "\n", encoding="utf-8")


def text_of(value: Any, indent: int = 0) -> str:
    """``value`` as JSON, on one line where that is short enough to be read."""
    whole = json.dumps(value, ensure_ascii=False)
    if len(whole) + indent <= 116 or not isinstance(value, (dict, list, tuple)) or not value:
        return whole
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        each = [f"{json.dumps(key, ensure_ascii=False)}: {text_of(item, indent + 1)}" for key, item in value.items()]
        return f"{{\n{pad}" + f",\n{pad}".join(each) + "\n" + " " * indent + "}"
    return f"[\n{pad}" + f",\n{pad}".join(text_of(item, indent + 1) for item in value) + "\n" + " " * indent + "]"


def both_savers(out: Path, name: str, way: Mapping[str, Any]) -> Any:
    """What comes of going on with a thread: the same with either checkpointer."""
    gave = {}
    for kind in SAVERS:
        code, gave[kind] = child(go_on, out, name, kind, way)
        assert code == 0, (name, kind, way["name"])
    assert gave["sqlite"] == gave["memory"], (name, way["name"], gave)
    return gave["sqlite"]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
