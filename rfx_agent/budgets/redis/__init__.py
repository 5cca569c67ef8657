"""Limits kept in Redis. Needs the extra ``redis``."""
