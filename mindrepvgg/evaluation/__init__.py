"""A network judged: metrics, validation, predictions, and the cross-check with PyTorch."""
