"""The network, one noun per file."""
