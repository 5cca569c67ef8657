"""Where rfx_agent meets other frameworks. Each module loads its framework when it is imported, not before."""
