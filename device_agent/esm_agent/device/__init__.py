"""Facts, settings and current state of this device."""
