"""Evaluation of predictions and of measurements."""
