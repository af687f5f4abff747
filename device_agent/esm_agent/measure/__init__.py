"""Measurement of models: the measuring process, its protocols and its runtimes."""
