"""The parts of the graph adapters: where a recovery comes from, how a foreign state is read, a node as a sampler."""
