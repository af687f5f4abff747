"""What is known of one device, put to use on another."""
