"""OpenAI chat completions: from a request to bodies, and from replies to rollouts and their tables."""
