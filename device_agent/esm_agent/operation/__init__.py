"""Operation of the agent as a service: logs, counters, systemd."""
