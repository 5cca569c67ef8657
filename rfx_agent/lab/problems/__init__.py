"""Where the problems of a collection come from: a file of JSON lines, or the generators of reasoning-gym."""

from rfx_agent.lab.problems.files import from_jsonl
from rfx_agent.lab.problems.gym import ASK, DEFAULT, GymVerifier, from_gym
from rfx_agent.lab.problems.problem import Problem

__all__ = ["ASK", "DEFAULT", "GymVerifier", "Problem", "from_gym", "from_jsonl"]
