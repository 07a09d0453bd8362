"""Programs over the public functions: check a head, warm up a device."""
