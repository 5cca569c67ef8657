"""``rfx collect``: problems × models × remedies to a dataset of failures, resumable after a kill at any moment.

plan ──▶ collector ──▶ run (phases) ──▶ units (one attempt each) ──▶ journal ──▶ assemble ──▶ lab/dataset
"""

from rfx_agent.lab.collect.collector import acollect, collect, finish
from rfx_agent.lab.collect.plan import Plan
from rfx_agent.lab.collect.run import Progress

__all__ = ["Plan", "Progress", "acollect", "collect", "finish"]
