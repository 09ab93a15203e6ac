"""A Ray head of the client's own, on this machine."""
