"""The clip table -> features in the cache: what is missing, the pass that computes it, and what it will cost."""
