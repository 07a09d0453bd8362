"""Who is timed: this library, plain torch, other libraries."""
