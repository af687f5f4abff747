"""How a model is measured: the process that does it, its protocols and runtimes."""
