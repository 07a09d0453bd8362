"""Policy losses as data: `spec` (the axes), `presets` (the table), and their evaluation."""
