"""The command line: parses, prints and exits; nothing else does."""
