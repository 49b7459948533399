"""Local learning: the round of one device, and of many devices trained together."""
