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


def build(name, num_classes, image_shape, policy, seed):
    """Builds one of `names.APPLICATIONS`. `alexnet.build` has checked the arguments, but not the size of the images."""
    constructor = getattr(keras.applications, name)
    dtype = keras.dtype_policies.get(policy).variable_dtype
    has_preprocessing = "include_preprocessing" in inspect.signature(constructor).parameters
    with _settings_of_keras(policy, seed):
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
        config = layer.get_config()
        # Compare exact types, because a subclass may have other arguments.
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
def _settings_of_keras(policy, seed):
    """Sets what the constructors do not take, and restores it at the end.

    That is Keras's global dtype policy, and the state of Python's `random`, from which Keras draws the seeds of initializers.
    """
    policy_before, state_before = keras.config.dtype_policy(), random.getstate()
    keras.config.set_dtype_policy(policy)
    random.seed(seed)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy_before)
        random.setstate(state_before)
