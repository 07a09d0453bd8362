"""Which tokens of a batch are selected, in order of their keys, and which value stands where."""
