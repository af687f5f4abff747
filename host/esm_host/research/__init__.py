"""Methods of papers, and studies of them; nothing of the main path needs them."""
