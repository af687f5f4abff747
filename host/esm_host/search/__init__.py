"""Multi-objective search for architectures, with verification by measurement."""
