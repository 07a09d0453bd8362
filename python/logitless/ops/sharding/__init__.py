"""A vocabulary that is spread over ranks."""
