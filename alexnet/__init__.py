"""Networks: from a batch of images to logits.

    import alexnet
    model = alexnet.build("alexnet_tower", num_classes=10, image_shape=(32, 32, 3))
    logits = model(images, training=True)              # [batch, 32, 32, 3] -> [batch, 10]

    names.py          the names of the networks and of their options; does not import TensorFlow
    alexnet.py        the paper's network and two smaller versions of it for 32x32 images
    airbench.py       the network of a fast CIFAR-10 recipe of 2024
    resnet.py         a residual network for 32x32 images
    layers.py         response normalization, grouped convolutions, dropout with reproducible masks, seeds of layers
    later_layers.py   what came after the paper: batch normalization, GELU, whitening, dirac
    applications.py   the classification networks of keras.applications
    settings.py       Keras's global settings, which a user may have changed

"The paper" in a docstring means Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural
Networks, NIPS 2012.

Importing the package imports neither TensorFlow nor Keras; `build` does.
"""

from alexnet import names

# {precision: Keras dtype policy}. With bfloat16 and float16 the weights stay float32.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16", "float64": "float64"}


def build(name, num_classes, image_shape, *, options=None, dropout_rate=None, precision="float32", seed=0):
    """Builds one network. Its initial weights are a pure function of the arguments.

    So they do not depend on Keras's global settings or on a keras.json. Those settings and the global random states stay as they
    are.

    Args:
      name: one of `names.ALL`.
      num_classes: int, at least 1.
      image_shape: (height, width, channels), ints, at least 1.
      options: a string such as "lrn=false,towers=1", or a dict with the same content; see `names.OPTIONS`.
      dropout_rate: dropout rate of the hidden dense layers, 0 <= rate < 1. None keeps the network's own rate. Must be None
        for the networks of keras.applications.
      precision: dtype of the computation: "float32", "bfloat16", "float16" or "float64".
      seed: seed of the initial weights, int, 0 <= seed < 2**63.

    Returns:
      A `keras.Model` from normalized floating-point images [batch, height, width, channels] to logits
      [batch, num_classes]. The logits are float64 if `precision` is "float64", else float32.

    Raises:
      ValueError: an argument is out of range, the image is too small for the network, or Keras does not run on TensorFlow. The
        message is one line.
    """
    options = names.parse_options(name, options)
    if num_classes < 1:
        raise ValueError(f"num_classes {num_classes}: give 1 or more")
    image_shape = tuple(image_shape)
    if len(image_shape) != 3 or any(not isinstance(size, int) or size < 1 for size in image_shape):
        raise ValueError(f"image_shape {image_shape}: give (height, width, channels), three whole numbers above 0")
    if precision not in POLICIES:
        raise ValueError(f"precision {precision!r}: give one of {', '.join(POLICIES)}")
    if dropout_rate is not None and not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate {dropout_rate}: give a number that is at least 0 and below 1")
    if name in names.APPLICATIONS and dropout_rate is not None:
        raise ValueError(f"dropout_rate {dropout_rate} has no effect on {name}, which has its own; leave it out")
    from alexnet.settings import keras_settings

    with keras_settings():
        if name in names.APPLICATIONS:
            from alexnet import applications

            return applications.build(name, num_classes, image_shape, POLICIES[precision], seed)
        if name in names.RESNETS:
            from alexnet import resnet as networks
        elif name in names.AIRBENCHES:
            from alexnet import airbench as networks
        else:
            from alexnet import alexnet as networks
        return networks.build(name, num_classes, image_shape, options, dropout_rate, POLICIES[precision], seed)
