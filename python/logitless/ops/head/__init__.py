"""hidden x weight: plan, tiles, products, and the torch ops over them."""
