"""The formulas of clipping, in float64, and the limits that tests use."""

import math

from tests.support.cases import set_grads

SHAPES = [(), (7,), (1025,), (0,), (33, 17), (3, 5, 7)]
LIMITS = [{}, {"clipnorm": 0.05}, {"global_clipnorm": 0.2}]


def norm(grads):
    return math.sqrt(sum(grad.double().square().sum().item() for grad in grads))


def clipped(grads, clipnorm=None, global_clipnorm=None):
    """The formula, in float64."""
    if clipnorm is not None:
        return [grad.double() * (clipnorm / max(norm([grad]), clipnorm)) for grad in grads]
    if global_clipnorm is not None:
        factor = global_clipnorm / max(norm(grads), global_clipnorm)
        return [grad.double() * factor for grad in grads]
    return [grad.double() for grad in grads]


def gradients_of(params, step, scale=1.0):
    set_grads(params, step, scale)
    return [param.grad for param in params]
