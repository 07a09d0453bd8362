"""./dev bench trainers: a micro-batch and a whole step of other people's trainers, as they are and
with this library."""
