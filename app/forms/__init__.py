"""The form of a new run: text to configuration and back."""
