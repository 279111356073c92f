"""Optional parts: benchmark scores and names that existing configurations use."""
