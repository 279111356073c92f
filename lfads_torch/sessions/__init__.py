"""Several sessions and days: align them, and add one to a trained model."""
