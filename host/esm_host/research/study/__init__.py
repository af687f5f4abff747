"""Studies, which compare predictors, encodings, training sizes and devices."""
