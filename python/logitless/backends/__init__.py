"""The kernels of each device behind one set of methods, and what they share."""
