"""Few-shot predictors, and what they are made of."""
