"""Verifiers: what tells a success from a failure. A "no" is a ``Verdict``; an exception is a broken verifier."""

from __future__ import annotations

from rfx_agent.verifiers.agreement import AgreementVerifier
from rfx_agent.verifiers.answers import canonical, extract_answer
from rfx_agent.verifiers.function import FunctionVerifier
from rfx_agent.verifiers.judge import JudgeVerifier
from rfx_agent.verifiers.math import MathVerifier
from rfx_agent.verifiers.panels import AllOf, AnyOf, Cascade
from rfx_agent.verifiers.schema import JsonSchemaVerifier, PydanticVerifier
from rfx_agent.verifiers.text import ExactVerifier, RegexVerifier
from rfx_agent.verifiers.unit_tests import TestsVerifier

__all__ = [
    "AgreementVerifier",
    "AllOf",
    "AnyOf",
    "Cascade",
    "ExactVerifier",
    "FunctionVerifier",
    "JsonSchemaVerifier",
    "JudgeVerifier",
    "MathVerifier",
    "PydanticVerifier",
    "RegexVerifier",
    "TestsVerifier",
    "canonical",
    "extract_answer",
]
