"""What hosts talk to: the server, whose turn it is, and what they send."""
