"""What tests of fleets have in common."""

TWO = """name = "lab"
[superlink]
host = "10.0.0.1"
[[device]]
name = "pi-1"
address = "10.0.0.11"
data-path = "/data/part-000"
profile = "raspberry-pi-4"
[[device]]
name = "pi-2"
address = "pi-2.example.org"
data-path = "/data/part-001"
device = "cuda"
torch-threads = 3
"""
