"""Shared foundations: errors, optional libraries, options, random seeds, the machine."""
