"""What is timed, at what, and by which implementations."""
