"""The mathematics of a step: the loss, the gradient, the update. This is the file to edit for research.

A train step reads from top to bottom: `replica_step` runs on each replica and ends with gradients that are already the
whole batch's, `apply_update` changes the weights from them, `make_train_loop` repeats both inside one compiled call.
"""

import tensorflow as tf

from alexnet.layers import dropout_masks

SUM = tf.distribute.ReduceOp.SUM


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
    """One replica's share of the batch: sums over its examples, divided by the global batch.

    Args:
      batch: {"image": uint8 [b, height, width, 3], "label": int32 [b]}.
      step: int64 scalar; with the seed it fixes the dropout masks.
      first_example: the row of the global batch that this share starts with.

    Returns:
      This share's summands: gradients (a list like model.trainable_variables), loss, number of correct examples.
    """
    global_batch_size = config.optimization.global_batch_size
    images = scale_pixels(batch["image"], state.pixels, state.model.inputs[0].dtype)
    with dropout_masks(config.run.seed, step, first_example), tf.GradientTape() as tape:
        logits = state.model(images, training=True)
        losses = cross_entropy(batch["label"], logits, config.optimization.label_smoothing)
        loss = tf.reduce_sum(losses) / global_batch_size
    gradients = tape.gradient(loss, state.model.trainable_variables)
    correct = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), batch["label"])
    return gradients, loss, tf.reduce_sum(tf.cast(correct, loss.dtype))


def replica_step(state, config, batch, step):
    """Forward, backward, reduction, clipping: what every replica does, with the same result on each.

    Returns:
      gradients: of the whole batch's mean loss, clipped, in the order of model.trainable_variables.
      report: {"loss", "accuracy", "gradient_norm", "finite"}, scalars over the whole batch.
    """
    replica = tf.distribute.get_replica_context()
    first_example = replica.replica_id_in_sync_group * tf.shape(batch["label"])[0]
    summands = forward_and_backward(state, config, batch, step, first_example)
    gradients, loss, num_correct = replica.all_reduce(SUM, summands)
    accuracy = num_correct / config.optimization.global_batch_size
    # The norm and the decision to skip are taken after the reduction: before it, replicas would clip and skip differently.
    norm = tf.linalg.global_norm(gradients)
    if config.optimization.clip_global_norm:
        limit = tf.cast(config.optimization.clip_global_norm, norm.dtype)
        gradients = [gradient * (limit / tf.maximum(norm, limit)) for gradient in gradients]
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
    return gradients, {"loss": loss, "accuracy": accuracy, "gradient_norm": norm, "finite": finite}


def apply_update(strategy, state, config, gradients, learning_rate):
    """Changes weights and slots on every replica, in the cross-replica context.

    Weight decay comes after clipping and leaves biases and normalisation (all vectors) alone. For sgd it goes into the
    momentum (paper, section 5: v <- 0.9 v - 0.0005 * lr * w - lr * gradient), for adam into the gradient, and for adamw
    straight off the weight (Loshchilov and Hutter, "Decoupled weight decay").
    """

    def update(weight, gradient):
        decay = config.optimization.weight_decay if len(weight.shape) > 1 else 0.0
        if decay and config.optimization.optimizer == "adamw":
            weight.assign_sub(tf.cast(learning_rate * decay, weight.dtype) * weight)
        elif decay:
            gradient += decay * weight
        state.optimizer.update_step(gradient, weight, learning_rate)

    for variable, gradient in zip(state.model.trainable_variables, gradients, strict=True):
        strategy.extended.update(variable.value, update, args=(gradient,), group=False)
    state.optimizer.iterations.assign_add(1)


def train_step(strategy, state, config, batch, step, learning_rate):
    """One update on all replicas; a loss or gradient that is not finite changes nothing.

    Returns:
      `replica_step`'s report.
    """
    gradients, report = strategy.run(lambda share: replica_step(state, config, share, step), args=(batch,))
    report = {name: strategy.experimental_local_results(value)[0] for name, value in report.items()}
    if report["finite"]:
        apply_update(strategy, state, config, gradients, learning_rate)
    return report


def make_train_loop(strategy, state, config):
    """Compiles the inner loop: several steps in one call from the host.

    Returns:
      loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row) -> (steps done, {name: [steps_per_loop]}).
      It stops early, at the first step that goes beyond max_nonfinite_steps. `learning_rates` and the reports always
      have steps_per_loop entries, so that a shorter last stretch does not compile again.
    """
    size = config.device.steps_per_loop

    @tf.function
    def train_loop(iterator, first_step, num_steps, learning_rates, skipped_in_a_row):
        wide = tf.float64 if config.network.precision == "float64" else tf.float32
        losses = tf.TensorArray(wide, size, element_shape=())
        accuracies = tf.TensorArray(wide, size, element_shape=())
        norms = tf.TensorArray(wide, size, element_shape=())
        finite = tf.TensorArray(tf.bool, size, element_shape=())
        done = 0
        with strategy.scope():
            for index in tf.range(num_steps):
                step = first_step + tf.cast(index, tf.int64)
                report = train_step(strategy, state, config, next(iterator), step, learning_rates[index])
                losses = losses.write(index, report["loss"])
                accuracies = accuracies.write(index, report["accuracy"])
                norms = norms.write(index, report["gradient_norm"])
                finite = finite.write(index, report["finite"])
                done += 1
                skipped_in_a_row = tf.where(report["finite"], 0, skipped_in_a_row + 1)
                if skipped_in_a_row > config.optimization.max_nonfinite_steps:
                    break
        reports = {"loss": losses, "accuracy": accuracies, "gradient_norm": norms, "finite": finite}
        return done, {name: values.stack() for name, values in reports.items()}

    return train_loop


def make_eval_step(strategy, state):
    """Compiles the forward pass for evaluation: per-replica images in, a list of logits [b, classes] out, one a replica."""

    def forward(batch):
        images = scale_pixels(batch["image"], state.pixels, state.model.inputs[0].dtype)
        return state.model(images, training=False)

    @tf.function
    def eval_step(batch):
        return strategy.run(forward, args=(batch,))

    return eval_step
