"""What a job is, from the user's words to its end."""
