"""One campaign: its folder, session, results and predictor."""
