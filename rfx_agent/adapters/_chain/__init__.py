"""The parts of ``with_recovery``: the runnable, its plan, its draws, and the streams that are held back."""
