"""Verifiers: what tells a success from a failure. A "no" is a ``Verdict``; an exception is a broken verifier."""

from __future__ import annotations

from rfx_agent.verifiers.agreement import AgreementVerifier
from rfx_agent.verifiers.answers import canonical, extract_answer
from rfx_agent.verifiers.function import FunctionVerifier
from rfx_agent.verifiers.judge import JudgeVerifier
from rfx_agent.verifiers.math import MathVerifier
from rfx_agent.verifiers.schema import JsonSchemaVerifier, PydanticVerifier
from rfx_agent.verifiers.text import ExactVerifier, RegexVerifier

__all__ = [
    "AgreementVerifier",
    "ExactVerifier",
    "FunctionVerifier",
    "JsonSchemaVerifier",
    "JudgeVerifier",
    "MathVerifier",
    "PydanticVerifier",
    "RegexVerifier",
    "canonical",
    "extract_answer",
]
