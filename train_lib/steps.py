"""The mathematics of one train step: loss, gradient, reduction, update. This is the file to edit for research.

Read it from top to bottom. Every replica runs `replica_step` on its share of the batch: scale and augment the images, go
forward and backward through the network, sum over all replicas, clip, and check that the result is finite. `apply_update` then
changes the weights. `inner_loop.py` repeats `train_step` inside one compiled call.

There is no `if` on a value that a device computes: the host would have to wait for it at every step, and a GPU would idle while
the next step is launched. A step that must change nothing is one that is not `made`: rates become 0, factors 1, and the update
rules exchange the gradient for something finite, because 0 times NaN is NaN.

Shapes: b is the number of examples that a replica works on at a time. Losses and metrics stay one value per example, [b], until
they are summed and divided by the size of the global batch. That is why N replicas compute what one device computes.
"""

import tensorflow as tf

from alexnet.layers import dropout_masks
from train_lib.augment import augment, scale_pixels
from train_lib.optimizers import normalization_biases

SUM = tf.distribute.ReduceOp.SUM

# The metrics of a train record, and how a record reduces the values of its steps: "mean", "sum", "max" or "last". A function
# computes its metric from the other values of the record instead, such as lambda record: record["a"] / record["b"].
METRICS = {"loss": "mean", "accuracy": "mean", "gradient_norm": "mean"}


def cross_entropy(labels, logits, label_smoothing=0.0):
    """The cross-entropy of each example, computed in float32 or float64.

    Args:
      labels: int [b].
      logits: float [b, classes].
      label_smoothing: the fraction of the target probability that is spread evenly over the classes.

    Returns:
      float [b]. It is not averaged here: a mean over a replica's share would weigh replicas instead of examples.
    """
    if logits.dtype == tf.float64:  # the fused kernel below has no float64 on a GPU
        hard = tf.reduce_logsumexp(logits, axis=-1) - tf.gather(logits, labels, batch_dims=1)
    else:
        logits = tf.cast(logits, tf.float32)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if label_smoothing == 0:
        return hard
    even = tf.reduce_mean(tf.reduce_logsumexp(logits, axis=-1, keepdims=True) - logits, axis=-1)
    return (1 - label_smoothing) * hard + label_smoothing * even


def training_loss(targets, logits, config):
    """The loss of each example, float [b]. Under mixup and CutMix it is the weighted sum of the losses for both labels.

    Args:
      targets: augment.Targets.
      logits: float [b, classes].
      config: OptimizerConfig, which is where a setting of your loss belongs.
    """
    losses = cross_entropy(targets.labels, logits, config.label_smoothing)
    if targets.others is None:
        return losses
    weight = tf.cast(targets.weight, losses.dtype)
    return weight * losses + (1 - weight) * cross_entropy(targets.others, logits, config.label_smoothing)


def example_metrics(targets, logits, losses):
    """The metrics of each example, {name: float [b]}. Each needs an entry in METRICS."""
    correct = tf.equal(tf.argmax(logits, axis=-1), targets.labels)
    return {"loss": losses, "accuracy": tf.cast(correct, losses.dtype)}


def forward_and_backward(state, config, batch, step, first_example):
    """The gradient and the metrics of part of a batch, as sums over its examples.

    Args:
      state: TrainState.
      config: ExperimentConfig.
      batch: {"image": uint8 [b, height, width, 3], "label": int64 [b]}.
      step: int64 scalar. Together with the seed it determines the dropout masks and the augmentation.
      first_example: the row of the global batch at which this part begins.

    Returns:
      gradients: a list in the order of model.trainable_variables. Summed over all parts they are the gradient of the mean loss
        of the global batch, times the loss scale if there is one.
      metrics: {name: sum over the examples of this part}.
    """
    images = scale_pixels(batch["image"], state.pixels, state.model.inputs[0].dtype)
    images, targets = augment(config, state.pixels, images, batch["label"], step, first_example)
    with dropout_masks(config.general.seed, step, first_example), tf.GradientTape() as tape:
        logits = state.model(images, training=True)  # [b, classes]
        losses = training_loss(targets, logits, config.optimization)  # [b]
        loss = tf.reduce_sum(losses) / config.optimization.global_batch_size
        scaled_loss = loss * state.loss_scale.value if state.loss_scale else loss
    gradients = tape.gradient(scaled_loss, state.model.trainable_variables)
    metrics = example_metrics(targets, logits, losses)
    return gradients, {name: tf.reduce_sum(values) for name, values in metrics.items()}


def replica_sums(state, config, batch, step):
    """One replica's share of the batch: the result of `forward_and_backward`, summed over its --accumulate_steps parts."""
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
        # Compute one part after the other: side by side they would need the memory that accumulation is meant to save.
        with tf.control_dependencies(tf.nest.flatten(sums) if sums else []):
            result = compute(part, first_example + index * rows)
            sums = tf.nest.map_structure(tf.add, sums, result) if sums else result
    return sums


def sum_over_replicas(tensors):
    """Sums each tensor of a list over all replicas. They travel as one vector, so there is one all-reduce per step."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return tensors
    packed = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    sums = tf.split(replica.all_reduce(SUM, packed), [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(total, tensor.shape) for total, tensor in zip(sums, tensors, strict=True)]


def replica_step(state, config, batch, step, learning_rate, going=True):
    """What every replica does up to the update: forward, backward, reduction, clipping. The result is the same on all of them.

    Returns:
      gradients: of the mean loss of the global batch, clipped, in the order of model.trainable_variables.
      report: scalars for the whole batch: the metrics, with "gradient_norm" before clipping; "finite": whether the update is
        made if the run is still `going`; "counts": whether a skipped update counts towards --max_nonfinite_steps.
    """
    # The forward pass changes the batch statistics. Keep the old values: a step that is skipped must not change them.
    before = [tf.identity(variable) for variable in state.batch_statistics]
    gradients, sums = replica_sums(state, config, batch, step)
    # Clip and check after the reduction. Before it, each replica would see another norm and decide differently.
    totals = sum_over_replicas([*gradients, *sums.values()])
    gradients, totals = totals[: len(gradients)], totals[len(gradients) :]
    metrics = {name: total / config.optimization.global_batch_size for name, total in zip(sums, totals, strict=True)}
    loss = metrics["loss"]
    if state.loss_scale:
        gradients = [gradient / state.loss_scale.value for gradient in gradients]
    norm = tf.linalg.global_norm(gradients)
    if config.optimization.clip_global_norm:
        limit = tf.constant(min(config.optimization.clip_global_norm, norm.dtype.max), norm.dtype)
        gradients = [gradient * (limit / tf.maximum(norm, limit)) for gradient in gradients]
    # Check the rate times the norm, too: a finite gradient can still make an update that is too large for a float.
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm) & tf.math.is_finite(tf.cast(learning_rate, norm.dtype) * norm)
    for variable, value in zip(state.batch_statistics, before, strict=True):
        variable.assign(tf.where(finite & going, variable, value))
    # Gradients that overflow in float16 are cured by a lower loss scale. A loss that is not finite is not.
    curable = tf.math.is_finite(loss) & state.loss_scale.can_fall() if state.loss_scale else False
    return gradients, {**metrics, "gradient_norm": norm, "finite": finite, "counts": ~(finite | curable)}


def apply_update(strategy, state, config, gradients, learning_rate, made):
    """If `made`, a bool scalar, changes weights, slots and averages on every replica. Call it in the cross-replica context.

    The biases of normalization layers have a rate of their own, --bias_rate times the others'. Weight decay comes after clipping
    and leaves biases and normalization alone (all vectors). For sgd it goes into the momentum (paper, section 5:
    v <- 0.9 v - 0.0005 * lr * w - lr * gradient), for adam into the gradient. For adamw it is decoupled: it is subtracted from
    the weight itself (Loshchilov and Hutter, "Decoupled weight decay").
    """

    def update(weight, optimizer, gradient, rate, made, *averages):
        rate = tf.where(made, rate, 0)
        decay = config.optimization.weight_decay if len(weight.shape) > 1 else 0.0
        if decay and getattr(optimizer, "decoupled_weight_decay", False):
            weight.assign_sub(tf.cast(rate * decay, weight.dtype) * weight)
        elif decay:
            gradient += decay * weight
        optimizer.update_step(gradient, weight, rate, made)
        for average in averages:
            share = tf.where(made, tf.constant(1 - config.optimization.ema_decay, weight.dtype), 0)
            average.assign_add(share * (weight - average))

    weights, biases = state.model.trainable_variables, normalization_biases(state.model)
    averages = [(average,) for average in state.averages] if config.optimization.ema_decay else [()] * len(weights)
    for variable, optimizer, gradient, average in zip(weights, state.optimizers, gradients, averages, strict=True):
        rate = learning_rate * config.optimization.bias_rate if variable.path in biases else learning_rate
        strategy.extended.update(variable.value, update, args=(optimizer, gradient, rate, made, *average), group=False)
    for optimizer in dict.fromkeys(state.optimizers):
        optimizer.iterations.assign_add(tf.cast(made, optimizer.iterations.dtype))


def train_step(strategy, state, config, batch, step, learning_rate, going=True):
    """One update on all replicas. If the loss or the gradient is not finite, nothing changes except the loss scale.

    If the run is not `going` any more, a bool scalar, nothing changes at all. Returns the report of `replica_step`.
    """
    gradients, report = strategy.run(
        lambda share: replica_step(state, config, share, step, learning_rate, going), args=(batch,))
    report = {name: strategy.experimental_local_results(value)[0] for name, value in report.items()}
    apply_update(strategy, state, config, gradients, learning_rate, report["finite"] & going)
    if state.loss_scale:
        state.loss_scale.update(report["finite"], going)
    return report


def look_ahead(strategy, state, share, made):
    """If `made`, moves the slow weights by `share` of the way to the trained ones, which go on from there: --lookahead_steps.

    Batch statistics move like weights. Call it in the cross-replica context, after an update. Zhang et al., "Lookahead Optimizer:
    k steps forward, 1 step back".
    """

    def move(weight, slow):
        slow.assign_add(tf.where(made, tf.cast(share, slow.dtype), 0) * (weight - slow))
        weight.assign(tf.where(made, slow, weight))

    weights, statistics = state.model.trainable_variables, state.batch_statistics
    for weight, slow in zip(weights, state.averages[: len(weights)], strict=True):
        strategy.extended.update(weight.value, move, args=(slow,), group=False)

    def move_statistics():  # each replica has its own, and all of them are equal
        for variable, slow in zip(statistics, state.averages[len(weights) :], strict=True):
            move(variable.value, slow)

    strategy.run(move_statistics)
