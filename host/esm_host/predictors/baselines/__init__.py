"""Predictors for comparison, and predictors that need a library of their own."""
