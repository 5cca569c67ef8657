"""A budget for a whole run of LangChain and LangGraph: what pays, and the two ways to put it around one."""
