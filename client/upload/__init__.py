"""What is uploaded, before it is."""
