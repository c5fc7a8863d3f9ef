"""The terminal: documents to rich objects and plain lines, what commands share, and those that need no `heads`."""
