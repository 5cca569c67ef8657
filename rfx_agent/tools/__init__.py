"""Tools that answer a step by other means than reasoning in text: a sandboxed program, or a LangChain tool."""

from __future__ import annotations

from rfx_agent.tools.langchain import LangChainTool
from rfx_agent.tools.os_sandbox import OSSandbox
from rfx_agent.tools.program import ProgramTool
from rfx_agent.tools.sandbox import Sandbox

__all__ = ["LangChainTool", "OSSandbox", "ProgramTool", "Sandbox"]
