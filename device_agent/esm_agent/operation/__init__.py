"""An agent among other programs: logs, counters, systemd."""
