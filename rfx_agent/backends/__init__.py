"""Models that can be sampled, scored and steered.

Nothing is imported here: each module brings a provider's SDK with it, so import the one that you use, such as
``rfx_agent.backends.openai`` or ``rfx_agent.backends.local``.
"""
