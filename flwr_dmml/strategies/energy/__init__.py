"""What the coordinator plans with under energy."""
