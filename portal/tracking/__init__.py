"""What services tell with Track: stored durably, each once."""
