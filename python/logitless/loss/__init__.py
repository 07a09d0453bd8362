"""Policy losses as data: `spec` (the axes), `presets` (the table), and the functions that evaluate them."""
