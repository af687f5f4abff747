"""Errors of the agent's commands."""


class AccessError(Exception):
    """Error about tokens or certificates; the message is one line that says what to do."""
