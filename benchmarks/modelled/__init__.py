"""Modelled times on Apple chips, from exact counts of work and published speeds."""
