"""What runs inside the OS sandbox, under a CPython with nothing but its standard library.

``program`` runs a program; ``code`` loads code and serves what is asked of it; ``tests`` runs tests against such a
server, from another sandbox. The folder is mounted read-only, so its files import only each other.
"""
