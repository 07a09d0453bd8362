"""The whole job of a recipe: several methods from one start, and full logits beside them."""
