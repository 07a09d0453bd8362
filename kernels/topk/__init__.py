"""The largest logits of rows, kept while tiles stream by, and the gradients of these alone."""
