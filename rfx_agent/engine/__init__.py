"""The loop: the nodes of the graph, what they cost, and the drivers that run them. It knows no framework."""
