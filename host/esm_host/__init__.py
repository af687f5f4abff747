"""Why it is measured, and what follows: sampling, encoding, predicting, deciding what is next."""
