"""Policy losses: `spec` is their data, `evaluate` computes one over the tokens of a call."""
