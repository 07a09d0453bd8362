"""Tokens drawn while tiles of logits stream by."""
