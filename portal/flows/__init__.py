"""Which services run where, with which values."""
