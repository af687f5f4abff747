"""Predictors of the field that need a library of their own or are compared with."""
