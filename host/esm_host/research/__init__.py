"""Methods of papers and studies of them, without which the main path works."""
