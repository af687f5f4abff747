"""Loop that trains a predictor, evaluates it and extends its training set."""
