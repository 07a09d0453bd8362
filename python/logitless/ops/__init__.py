"""The public functions, one file each. Import them from `logitless`, not from here."""
