"""The parts of ``RecoverabilityMiddleware``: one file for each thing that a model call goes through."""
