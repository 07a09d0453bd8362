"""What a call is given, checked once: options, arrays, tokens, weights. It knows no backend."""
