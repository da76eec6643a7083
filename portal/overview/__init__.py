"""The first page: how the fleet is, and what wants to be looked at."""
