"""What logitless knows of other people's libraries."""
