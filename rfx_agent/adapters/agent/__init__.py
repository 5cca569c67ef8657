"""``RecoverabilityMiddleware`` for ``create_agent``."""
