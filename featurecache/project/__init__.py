"""The project folder: its settings, how they are checked, and what `init` proposes for a folder of recordings."""
