"""Keras's global settings. A user's keras.json or notebook may change them, and a network would come out otherwise."""

import contextlib

import keras

DEFAULTS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last", "dtype_policy": "float32"}


@contextlib.contextmanager
def keras_settings(**settings):
    """In this context, Keras has its own defaults, or what `settings` has in their place. Afterwards the user's are restored.

    Raises ValueError if Keras does not run on TensorFlow, because the backend cannot be changed after the import.
    """
    if (backend := keras.config.backend()) != "tensorflow":
        raise ValueError(f"Keras runs on {backend}; set the environment variable KERAS_BACKEND=tensorflow before it is imported")
    before = {name: getattr(keras.config, name)() for name in DEFAULTS}
    try:
        _set(DEFAULTS | settings)
        yield
    finally:
        _set(before)


def _set(settings):
    for name, value in settings.items():
        getattr(keras.config, f"set_{name}")(value)
