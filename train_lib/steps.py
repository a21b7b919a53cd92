"""The mathematics of a step: the loss, the gradient, the update. This is the file to edit for research.

A train step reads from top to bottom: `replica_step` runs on each replica and ends with gradients that are already the
whole batch's, `apply_update` changes the weights from them, `make_train_loop` repeats both inside one compiled call.
"""

import tensorflow as tf

from alexnet.layers import dropout_masks
from train_lib.augment import augment

SUM = tf.distribute.ReduceOp.SUM
# What a step reports and a train record has the mean of: a value an example from `forward_and_backward`, or `replica_step`'s.
METRICS = ("loss", "accuracy", "gradient_norm")


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Cross-entropy of each example, never below float32.

    Args:
      labels: int [b].
      logits: float [b, classes].
      label_smoothing: share of the target's probability that is spread evenly over all classes.

    Returns:
      [b], not yet a mean: a mean over a replica's share would weigh replicas, not examples.
    """
    logits = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if label_smoothing == 0:
        return hard
    even = tf.reduce_mean(tf.reduce_logsumexp(logits, axis=-1, keepdims=True) - logits, axis=-1)
    return (1 - label_smoothing) * hard + label_smoothing * even


def scale_pixels(images, pixels, dtype):
    """Network input from uint8 images, on the device: (image - offset) * scale per channel, in `dtype`."""
    return (tf.cast(images, dtype) - tf.constant(pixels.offset, dtype)) * tf.constant(pixels.scale, dtype)


def forward_and_backward(state, config, batch, step, first_example):
    """Part of a batch: sums over its examples, divided by the global batch.

    Args:
      batch: {"image": uint8 [b, height, width, 3], "label": int32 [b]}.
      step: int64 scalar; with the seed it fixes the dropout masks and the augmentation.
      first_example: the row of the global batch that this part starts with.

    Returns:
      This part's summands: gradients of the whole batch's mean loss (a list like model.trainable_variables, times the loss
      scale), and {metric: sum over this part's examples}.
    """
    images = scale_pixels(batch["image"], state.pixels, state.model.inputs[0].dtype)
    images, targets = augment(config, state.pixels, images, batch["label"], step, first_example)
    with dropout_masks(config.general.seed, step, first_example), tf.GradientTape() as tape:
        logits = state.model(images, training=True)
        losses = targets.mean_loss(lambda labels: cross_entropy(labels, logits, config.optimization.label_smoothing))
        loss = tf.reduce_sum(losses) / config.optimization.global_batch_size
        scaled_loss = loss * state.loss_scale.value if state.loss_scale else loss
    gradients = tape.gradient(scaled_loss, state.model.trainable_variables)
    correct = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), targets.labels)
    metrics = {"loss": losses, "accuracy": tf.cast(correct, losses.dtype)}  # [b], a value an example
    return gradients, {name: tf.reduce_sum(values) for name, values in metrics.items()}


def replica_summands(state, config, batch, step):
    """One replica's share of the batch, in --accumulate_steps parts: `forward_and_backward`'s result, summed over them."""
    parts = config.optimization.accumulate_steps
    rows = tf.shape(batch["label"])[0] // parts
    first_example = tf.distribute.get_replica_context().replica_id_in_sync_group * rows * parts

    def compute(part, first_example):
        return forward_and_backward(state, config, part, step, first_example)

    if config.device.xla == "on":
        compute = tf.function(compute, jit_compile=True, autograph=False)
    sums = None
    for index in range(parts):
        part = {name: values[index * rows : (index + 1) * rows] for name, values in batch.items()} if parts > 1 else batch
        # One part after the other: computed side by side they would need the memory that accumulation is to save.
        with tf.control_dependencies(tf.nest.flatten(sums) if sums else []):
            summands = compute(part, first_example + index * rows)
            sums = tf.nest.map_structure(tf.add, sums, summands) if sums else summands
    return sums


def sum_over_replicas(tensors):
    """Sums each of a list of tensors over all replicas, packed into one vector: one all-reduce for however many weights."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return tensors
    packed = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    sums = tf.split(replica.all_reduce(SUM, packed), [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(total, tensor.shape) for total, tensor in zip(sums, tensors, strict=True)]


def replica_step(state, config, batch, step, learning_rate, stop_requested):
    """Forward, backward, reduction, clipping: what every replica does, with the same result on each.

    Returns:
      gradients: of the whole batch's mean loss, clipped, in the order of model.trainable_variables.
      report: scalars over the whole batch: METRICS, "gradient_norm" before clipping; "finite": whether the update is to be
        made; "counts": whether a skipped one counts as such; "stopping": whether any replica was asked to stop.
    """
    statistics = state.model.non_trainable_weights  # of batch normalization; the forward pass changes them
    before = [tf.identity(variable) for variable in statistics]
    gradients, sums = replica_summands(state, config, batch, step)
    # The norm and the decision to skip are taken after the reduction: before it, replicas would clip and skip differently.
    *totals, num_stops = sum_over_replicas([*gradients, *sums.values(), tf.cast(stop_requested, sums["loss"].dtype)])
    gradients, totals = totals[: len(gradients)], totals[len(gradients) :]
    metrics = {name: total / config.optimization.global_batch_size for name, total in zip(sums, totals, strict=True)}
    loss = metrics["loss"]
    if state.loss_scale:
        gradients = [gradient / state.loss_scale.value for gradient in gradients]
    norm = tf.linalg.global_norm(gradients)
    if config.optimization.clip_global_norm:
        limit = tf.constant(min(config.optimization.clip_global_norm, norm.dtype.max), norm.dtype)
        gradients = [gradient * (limit / tf.maximum(norm, limit)) for gradient in gradients]
    # The rate times the norm: an update that no float can hold makes weights infinite as well.
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm) & tf.math.is_finite(tf.cast(learning_rate, norm.dtype) * norm)
    for variable, value in zip(statistics, before, strict=True):
        variable.assign(tf.where(finite, variable, value))
    # A lower loss scale mends gradients that overflow; it cannot mend a loss.
    mendable = tf.math.is_finite(loss) & state.loss_scale.can_fall() if state.loss_scale else False
    return gradients, {
        **metrics, "gradient_norm": norm, "finite": finite, "counts": ~(finite | mendable), "stopping": num_stops > 0,
    }


def apply_update(strategy, state, config, gradients, learning_rate):
    """Changes weights, slots and averages on every replica, in the cross-replica context.

    Weight decay comes after clipping and leaves biases and normalisation (all vectors) alone. For sgd it goes into the
    momentum (paper, section 5: v <- 0.9 v - 0.0005 * lr * w - lr * gradient), for adam into the gradient, and for adamw
    straight off the weight (Loshchilov and Hutter, "Decoupled weight decay").
    """

    def update(weight, optimizer, gradient, *averages):
        decay = config.optimization.weight_decay if len(weight.shape) > 1 else 0.0
        if decay and config.optimization.optimizer == "adamw":
            weight.assign_sub(tf.cast(learning_rate * decay, weight.dtype) * weight)
        elif decay:
            gradient += decay * weight
        optimizer.update_step(gradient, weight, learning_rate)
        for average in averages:
            average.assign_add((1 - config.optimization.ema_decay) * (weight - average))

    averages = [(average,) for average in state.averages] or [()] * len(gradients)
    weights = state.model.trainable_variables
    for variable, optimizer, gradient, average in zip(weights, state.optimizers, gradients, averages, strict=True):
        strategy.extended.update(variable.value, update, args=(optimizer, gradient, *average), group=False)
    for optimizer in dict.fromkeys(state.optimizers):
        optimizer.iterations.assign_add(1)


def train_step(strategy, state, config, batch, step, learning_rate, stop_requested=False):
    """One update on all replicas; a loss or gradient that is not finite changes nothing but a loss scale.

    Returns:
      `replica_step`'s report.
    """
    gradients, report = strategy.run(
        lambda share: replica_step(state, config, share, step, learning_rate, stop_requested), args=(batch,))
    report = {name: strategy.experimental_local_results(value)[0] for name, value in report.items()}
    if report["finite"]:
        apply_update(strategy, state, config, gradients, learning_rate)
    if state.loss_scale:
        state.loss_scale.update(report["finite"])
    return report
