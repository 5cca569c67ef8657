"""The paper's routing rule, by its public names; see ``rfx_agent.evidence.routing``."""

from rfx_agent.evidence.routing import RoutingRule, operator_of, route

__all__ = ["RoutingRule", "operator_of", "route"]
