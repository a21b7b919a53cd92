"""The classification networks of keras.applications, under their own names and without pretrained weights.

They follow the rules of our own networks, so they differ from the models that Keras's constructors return:
- images arrive normalized, so the network's own preprocessing is removed;
- initial weights are a function of a seed;
- batch normalization uses the statistics of all replicas;
- dropout masks are reproducible (see `layers.Dropout`);
- logits are float32 or float64.
"""

import contextlib
import inspect
import itertools
import random

import keras

from alexnet.layers import Dropout
from alexnet.settings import keras_settings


def build(name, num_classes, image_shape, policy, seed):
    """Builds one of `names.APPLICATIONS`. `alexnet.build` has checked the arguments, but not the size of the images."""
    constructor = getattr(keras.applications, name)
    dtype = keras.dtype_policies.get(policy).variable_dtype
    has_preprocessing = "include_preprocessing" in inspect.signature(constructor).parameters
    # The constructors take neither a dtype policy nor a seed, so set those of the process, and restore them at the end.
    with keras_settings(dtype_policy=policy), contextlib.ExitStack() as at_the_end:
        at_the_end.callback(random.setstate, random.getstate())
        random.seed(seed)  # Keras draws the seeds of initializers from `random`
        try:
            model = constructor(
                weights=None, classes=num_classes, classifier_activation=None, input_shape=image_shape,
                input_tensor=keras.Input(image_shape, dtype=dtype, name="images"),
                **({"include_preprocessing": False} if has_preprocessing else {}))
        except ValueError as error:
            size = "x".join(map(str, image_shape))
            raise ValueError(f"{name} cannot take images of {size}: {str(error).splitlines()[0]}") from error
        model = adapt(model)
    # The last layer computes in the policy's dtype. Some networks name it "logits", so the cast needs another name.
    logits = keras.layers.Activation("linear", dtype=dtype, name="logits_cast")(model.outputs[0])
    return keras.Model(model.inputs[0], logits, name=name)


def adapt(model):
    """Rebuilds a functional model for training on any number of replicas, with new initial weights.

    Batch normalization becomes synchronized, `keras.layers.Dropout` becomes `layers.Dropout`, and `Rescaling` becomes the
    identity (EfficientNetB0 to B7 divide pixels by 255 and have no argument to turn that off). All other layers and all
    names stay the same.
    """
    dropout_numbers = itertools.count()

    def rebuild(layer):
        kind, config = type(layer), layer.get_config()
        if kind is keras.layers.BatchNormalization:  # exact types, because a subclass may have other arguments
            config["synchronized"] = True
        elif kind is keras.layers.Dropout:
            kind = Dropout
            config |= {"layer_index": next(dropout_numbers), "seed": random.getrandbits(31)}
        elif kind is keras.layers.Rescaling:
            config |= {"scale": 1.0, "offset": 0.0}
        return kind.from_config(config)

    return keras.models.clone_model(model, clone_function=rebuild)
