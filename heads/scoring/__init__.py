"""How well a head does: pure functions from scores and targets to figures, thresholds and intervals."""
