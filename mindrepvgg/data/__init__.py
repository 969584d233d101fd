"""Pictures: data sets, decoding, augmentation, and the loaders that turn them into batches."""
