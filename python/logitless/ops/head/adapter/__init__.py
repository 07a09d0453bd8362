"""An adapter on a head: its factors as more columns of hidden and of weight."""
