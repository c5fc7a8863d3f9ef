"""Heads over several clips: how the parts of a sample reach a head."""
