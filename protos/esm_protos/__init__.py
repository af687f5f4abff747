"""The contract between host and agent: messages, their wire form, and what both must agree on."""
