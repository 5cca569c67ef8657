"""What many runs spend over one cap: ours beside others' limits. ``python -m benchmarks.overspend`` prints one JSON."""
