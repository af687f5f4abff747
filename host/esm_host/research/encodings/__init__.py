"""Architectures as vectors that NASFLAT takes beside the graph."""
