"""From clip scores to intervals on a timeline, and from two timelines to their agreement."""
