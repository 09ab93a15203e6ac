"""Several jobs under one name: chains and sweeps."""
