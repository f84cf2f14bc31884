"""What people write for a run: the config and the model files, checked before anything starts."""
