"""Processes that extract side by side: one per device, or Ray actors."""
