"""The loss of each token with its derivatives in closed form, its sums and its metrics."""
