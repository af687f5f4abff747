"""From predictor to architecture: which are best within a latency budget, and whether they are."""
