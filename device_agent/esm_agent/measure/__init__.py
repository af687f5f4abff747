"""Measurement of models: the measuring process, its orders of runs and its runtimes."""
