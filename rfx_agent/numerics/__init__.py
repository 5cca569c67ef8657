"""Kernels: NumPy in, NumPy out, one family a file; no logging and no state."""
