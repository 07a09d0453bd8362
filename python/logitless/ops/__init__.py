"""Ops over vocabulary-sized logits. Import from `logitless`, not from here."""
