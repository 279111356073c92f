"""A trained model bin by bin, and what such a stream and an export run."""
