"""A fleet of real devices with flwr-dmml."""
