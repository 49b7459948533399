"""Who is whose neighbour, and with what weight."""
