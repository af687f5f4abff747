"""Few-shot predictors of papers, and their parts."""
