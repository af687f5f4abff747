"""Sources of a transfer: latencies of other devices from imported tables and finished campaigns."""
