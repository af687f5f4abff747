"""Checks for conditions of this device that disturb measurements."""
