"""Latencies that are known already, of other devices: imported tables and finished campaigns."""
