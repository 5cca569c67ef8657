"""What a collected dataset says of remedies, of the paper's rule and of the evidence: figures with intervals."""

from rfx_agent.lab.evidence.figures import analyse, evidence, markdown, where_it_does_not_help

__all__ = ["analyse", "evidence", "markdown", "where_it_does_not_help"]
