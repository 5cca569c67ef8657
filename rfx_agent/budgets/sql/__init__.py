"""Limits kept in SQLite or PostgreSQL. Needs the extra ``production``; ``postgres`` for the second."""
