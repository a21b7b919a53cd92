"""The classification networks of keras.applications, under their own names and without pretrained weights.

They keep to the rules of our own networks, so they depart from what their constructors return:
- images come in normalized, and what a network would do to pixels first is left out;
- initial weights depend on a seed;
- the statistics of batch normalization span all replicas;
- dropout masks can be drawn again (see `layers.Dropout`);
- logits are at least float32.
"""

import contextlib
import inspect
import itertools
import random

import keras

from alexnet.layers import Dropout


def build(name, num_classes, image_shape, policy, seed):
    """Builds one of `names.APPLICATIONS`; `alexnet.build` has judged the arguments.

    Raises:
      ValueError: the network cannot be built for images of this shape.
    """
    constructor = getattr(keras.applications, name)
    dtype = keras.dtype_policies.get(policy).variable_dtype
    takes_raw_pixels = "include_preprocessing" in inspect.signature(constructor).parameters
    with _global_policy(policy), _seeded_initializers(seed):
        try:
            model = constructor(
                weights=None,
                classes=num_classes,
                classifier_activation=None,
                input_shape=image_shape,
                input_tensor=keras.Input(image_shape, dtype=dtype, name="images"),
                **({"include_preprocessing": False} if takes_raw_pixels else {}),
            )
        except ValueError as error:
            size = "x".join(map(str, image_shape))
            raise ValueError(f"{name} cannot take images of {size}: {str(error).splitlines()[0]}") from error
        model = adapt(model)
    # The network's own last layer, which may be named "logits", computes in the policy's dtype.
    logits = keras.layers.Activation("linear", dtype=dtype, name="logits_cast")(model.outputs[0])
    return keras.Model(model.inputs[0], logits, name=name)


def adapt(model):
    """Rebuilds a functional model for training on any number of replicas, with new initial weights.

    Batch normalization becomes synchronized, `keras.layers.Dropout` becomes `layers.Dropout`, and a
    `Rescaling` of pixels becomes the identity (EfficientNetB0 to B7 divide by 255 and have no switch for
    it). All else, and all names, stay.
    """
    dropout_numbers = itertools.count()

    def rebuild(layer):
        config = layer.get_config()
        # Exact types: a subclass may have other arguments.
        if type(layer) is keras.layers.BatchNormalization:
            return keras.layers.BatchNormalization.from_config({**config, "synchronized": True})
        if type(layer) is keras.layers.Dropout:
            number = next(dropout_numbers)
            return Dropout.from_config({**config, "layer_index": number, "seed": random.getrandbits(31)})
        if type(layer) is keras.layers.Rescaling:
            return keras.layers.Rescaling.from_config({**config, "scale": 1.0, "offset": 0.0})
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=rebuild)


@contextlib.contextmanager
def _global_policy(policy):
    """Sets Keras's global dtype policy, since the constructors take none, and puts the caller's back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _seeded_initializers(seed):
    """Seeds Python's `random`, from which Keras draws missing seeds, and puts the caller's state back."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
