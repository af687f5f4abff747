"""What this device is, how it is at the moment, and what would spoil numbers on it."""
