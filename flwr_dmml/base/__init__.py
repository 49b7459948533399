"""What everything else stands on: errors, libraries, options, randomness, the machine."""
