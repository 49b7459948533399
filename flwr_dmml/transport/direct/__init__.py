"""Letters from device to device over Eclipse Zenoh."""
