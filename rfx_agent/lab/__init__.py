"""Offline work on failures: read, calibrate, simulate, audit, report, extract. Needs the extra ``lab``."""
