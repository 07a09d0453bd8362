"""What the policy term of a token is made of: its ratio, its advantage and its weights."""
