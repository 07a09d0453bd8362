"""The head of a Hugging Face model, as a weight and the options of the head ops."""
