"""A trained model bin by bin: `stream`, and what it and an export run."""
