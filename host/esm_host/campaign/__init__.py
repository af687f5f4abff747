"""Folder, session, results and predictor of one campaign."""
