"""Checks of what on this device would spoil measurements."""
