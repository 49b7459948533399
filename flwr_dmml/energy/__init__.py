"""Energy model: device profiles, costs, batteries, energy meters, and the radio."""
