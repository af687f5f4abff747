"""Store of measurements, measurement of blocks, and data sets derived from them."""
