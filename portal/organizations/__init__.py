"""Whose nodes, services and flows these are, and the key that signs what nodes run."""
