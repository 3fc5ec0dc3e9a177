"""A conversation of many turns, and the file that keeps it."""
