"""A recording -> frames at stated presentation times, and the digest of its content."""
