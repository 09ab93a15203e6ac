"""What to look at when jobs do not run, and how to fix it."""
