"""A student's distributions beside a teacher's, of given logits or of two heads."""
