"""Errors of the agent that load nothing heavy."""


class AccessError(Exception):
    """Error about tokens or certificates; the message is one line that says what to do."""


class ProviderMissingError(Exception):
    """A provider does not work on this device; the text gives the reason."""
