"""The torch op of a policy loss, and how a graph holds a spec."""
