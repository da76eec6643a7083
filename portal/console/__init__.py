"""The live lines that services write with Debug, Warning and ThrowError."""
