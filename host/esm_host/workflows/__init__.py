"""Campaigns and searches, put together from their parts and run."""
