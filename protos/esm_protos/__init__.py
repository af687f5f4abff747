"""Contract between host and agent: messages, their wire format, and shared calculations."""
