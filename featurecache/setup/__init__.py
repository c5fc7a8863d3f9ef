"""Whether this machine, the model and the files are ready."""
