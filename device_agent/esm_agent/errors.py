"""Errors of the agent's commands."""


class AccessError(Exception):
    """What was asked of tokens or certificates cannot be done: one line that names the cure."""
