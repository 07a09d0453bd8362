"""RL of a trained chat model, method by method and seed by seed: docs/real_policy.md."""
