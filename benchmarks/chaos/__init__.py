"""The soak and chaos harness: faults, budgets under contention, and kills. Loopback only, bounded in time and count.

``python -m benchmarks.chaos faults|budgets|kills|all`` from the repository's root prints one JSON object and exits
with 1 where something that must hold did not. ``--small`` is a run of seconds.
"""
