"""WHERE it runs: the only door to Ray."""
