"""Campaigns and searches, assembled from their parts and run."""
