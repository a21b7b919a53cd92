"""What all rooms of the input share: errors, small files, settings, helpers for tf.data."""
