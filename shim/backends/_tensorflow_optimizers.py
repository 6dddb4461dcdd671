"""The optimizers of the TensorFlow backend: its training kernels, which follow Keras' formulas and update in place."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from shim.models import optimizers


def slots(optimizer, weight):
    """Return an optimizer's state for one weight. The RMSprop kernel has a momentum, here without effect."""
    count = 2 if optimizer.name == "rmsprop" else optimizers.STATES[optimizer.name]
    return [tf.Variable(np.zeros_like(weight)) for _ in range(count)]


def update(optimizer, weight, slots, gradient, count):
    """Apply one step to a variable and its slots, ``count`` steps having been taken before."""
    weight, slots, step = weight.handle, [slot.handle for slot in slots], tf.cast(count, gradient.dtype)
    lr = tf.convert_to_tensor(optimizers.rate(optimizer, step), gradient.dtype)  # the other constants follow its dtype
    rho, epsilon = optimizer.rho, optimizer.epsilon
    common = {"var": weight, "lr": lr, "epsilon": epsilon, "grad": gradient}
    if optimizer.name == "sgd":
        tf.raw_ops.ResourceApplyGradientDescent(var=weight, alpha=lr, delta=gradient)
    elif optimizer.name == "rmsprop":
        tf.raw_ops.ResourceApplyRMSProp(**common, ms=slots[0], mom=slots[1], rho=rho, momentum=0.0)
    elif optimizer.name == "adadelta":
        tf.raw_ops.ResourceApplyAdadelta(**common, accum=slots[0], accum_update=slots[1], rho=rho)
    else:
        beta1, beta2 = optimizer.beta_1, optimizer.beta_2
        powers = {"beta1_power": beta1 ** (step + 1), "beta2_power": beta2 ** (step + 1)}
        tf.raw_ops.ResourceApplyAdam(**common, m=slots[0], v=slots[1], beta1=beta1, beta2=beta2, **powers)


def summed(ids, rows):
    """Return ids, each once, and their rows, those of one id summed: many small steps of one row would lose digits."""
    unique, places = tf.unique(tf.reshape(ids, (-1,)))
    return unique, tf.math.unsorted_segment_sum(tf.reshape(rows, (-1, rows.shape[-1])), places, tf.size(unique))
