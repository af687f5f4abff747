"""Studies: predictors, encodings, training sizes and devices against each other, from a file."""
