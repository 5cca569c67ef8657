"""``with_recovery`` around any chain."""
