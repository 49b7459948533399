"""What runs beside Flower's SuperNode on a device: cheap messages. Only the zygote loads torch."""

RUN = "run"
"""A device's folder for what lives as long as its SuperNode."""
