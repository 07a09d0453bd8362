"""Times the ops against the least that must be done, plain torch and other libraries."""
