"""Errors of the agent that load nothing heavy."""


class AccessError(Exception):
    """Error about tokens or certificates; the message is one line that says what to do."""


class ProviderMissingError(Exception):
    """A provider does not work on this device; the text gives the reason.

    Attributes:
        problem: Reason without the provider's name.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem or message
