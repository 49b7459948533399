"""How one device learns in a round, and many at once."""
