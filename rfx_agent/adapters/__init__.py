"""Where rfx_agent meets LangChain and LangGraph: a chain, an agent, a graph."""
