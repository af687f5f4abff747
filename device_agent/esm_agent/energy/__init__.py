"""Sensors of energy, and the measurement of a model's energy with them."""
