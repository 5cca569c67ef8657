"""The recovery graph, and recovery in graphs that exist: ``recoverable`` and ``add_recovery``."""
