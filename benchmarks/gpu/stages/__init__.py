"""What each stage of `./dev gpu` does."""
