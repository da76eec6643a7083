"""What went wrong on nodes: reported durably, each once."""
