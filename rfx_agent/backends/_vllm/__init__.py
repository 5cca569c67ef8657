"""The parts of ``VLLMScorer``: what is asked, what is read from a reply, and where token ids come from."""
