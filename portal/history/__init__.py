"""How much of what happened to nodes is kept."""
