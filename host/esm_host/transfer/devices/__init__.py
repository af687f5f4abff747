"""Devices side by side: which rank architectures alike."""
