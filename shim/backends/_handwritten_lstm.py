"""Long short-term memories by hand, one direction or both at once.

Whatever does not depend on the recurrence is done for the whole sequence: the input product before it, the slopes of
all gates before the walk back, the weight and input gradients after it. Arrays are kept transposed, units before
batch, so that each gate is one contiguous piece, and both directions take each step together, each in its own order.
Gates stand in the order o, i, f, g, so that the three sigmoids are neighbours, and so are the three that the cell
state depends on. A sigmoid is ``tanh(z / 2) / 2 + 1 / 2``: with the weights of three gates halved beforehand, one tanh
serves all four. With hard sigmoids the weights of the three are scaled by 1/5 instead, and they are clipped.
"""

from __future__ import annotations

from types import SimpleNamespace

BLOCK = 2**16  # elements of one pass over the gates of some steps, so that they stay in the cache


def lstm(work, x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """Return the result and its pullback; see :func:`shim.contract.lstm`."""
    orders = [slice(None, None, -1 if reverse else 1)]
    return _recurrence(work, x, [(w_x, w_h, b)], orders, return_sequences, recurrent_activation == "hard_sigmoid")


def bilstm(
    work, x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """Return the result and its pullback; see :func:`shim.contract.bilstm`."""
    weights, orders = [(w_x, w_h, b), (w_x_reverse, w_h_reverse, b_reverse)], [slice(None), slice(None, None, -1)]
    return _recurrence(work, x, weights, orders, return_sequences, recurrent_activation == "hard_sigmoid")


def _recurrence(work, x, weights, orders, return_sequences, hard):
    """Run one LSTM for each of ``weights``, each through the steps in its order."""
    xp, (n, t, i), h, d = work.xp, x.shape, len(weights[0][1]), len(weights)
    a = work(_arrays, d, n, t, i, h, x.dtype)
    slope = a.fifth if hard else a.half
    for k, (w_x, w_h, b) in enumerate(weights):
        a.w_x[k, :, :i] = xp.roll(w_x, h, axis=1).T
        a.w_x[k, :, i] = xp.roll(b, h)
        a.w_h[k] = xp.roll(w_h, h, axis=1).T
        a.x[k, :, :, :i] = x.transpose(1, 0, 2)[orders[k]]
    a.w_x[:, : 3 * h] *= slope
    a.w_h[:, : 3 * h] *= slope
    xp.matmul(a.w_x, a.x.reshape(d, t * n, i + 1).transpose(0, 2, 1), out=a.z.reshape(d, 4 * h, t * n))
    _walk(xp, a, hard)
    if return_sequences:
        y = xp.empty((n, t, d, h), x.dtype)
        for k in range(d):
            y[:, :, k] = a.h[k, :, 1:].transpose(2, 1, 0)[:, orders[k]]
        y = y.reshape(n, t, d * h)
    else:
        y = a.h[:, :, t].transpose(2, 0, 1).copy().reshape(n, d * h)

    def pullback(dy, first=True):
        dys = None
        if return_sequences:
            dys = xp.empty((t, d, h, n), x.dtype)
            for k in range(d):
                dys[:, k] = dy.reshape(n, t, d, h)[:, orders[k], k].transpose(1, 2, 0)
            a.dh[:] = 0
        else:
            a.dh[:] = dy.reshape(n, d, h).transpose(1, 2, 0)
        _slopes(xp, a, t, h, hard, work.scale * BLOCK)
        _walk_back(xp, a, xp.stack([w_h for _, w_h, _ in weights]), dys)
        grads = [_input_gradient(xp, a, x, weights, orders) if first else None]
        for k in range(d):
            dz, states = a.z[k].reshape(4 * h, t * n), a.h[k].reshape(h, (t + 1) * n)[:, : t * n]
            dw_x = dz @ a.x[k].reshape(t * n, i + 1)
            grads += [dw_x[:, :i].T.copy(), states @ dz.T, dw_x[:, i].copy()]
        return grads

    return y, pullback


def _walk(xp, a, hard):
    """Take all steps of the recurrence; ``a.z`` holds the input products."""
    matmul, add, multiply, tanh = xp.matmul, xp.add, xp.multiply, xp.tanh
    weights, half, products = a.w_h, a.half, a.products
    summands = products[:, : products.shape[1] // 2], products[:, products.shape[1] // 2 :]
    a.steps[0].c[:] = 0
    for s in a.steps:
        matmul(weights, s.h, out=s.z)
        add(s.z, s.input, out=s.z)
        if hard:
            add(s.oif, half, out=s.oif)
            xp.clip(s.oif, 0, 1, out=s.oif)
            tanh(s.g, out=s.g)
        else:
            tanh(s.z, out=s.z)
            multiply(s.oif, half, out=s.oif)
            add(s.oif, half, out=s.oif)
        multiply(s.i_f, s.g_c, out=products)
        add(*summands, out=s.next_c)
        tanh(s.next_c, out=s.tanh_c)
        multiply(s.o, s.tanh_c, out=s.next_h)


def _slopes(xp, a, t, h, hard, block):
    """Fill ``a.slopes`` with what turns dh (gate o) and dc (gates i, f, g) into dz, ``a.tanh_c`` with dc / dh."""
    length = max(1, block // a.gates[0].size)
    for start in range(0, t, length):
        steps = slice(start, min(start + length, t))
        gates, slopes, tanh_c = a.gates[steps], a.slopes[steps], a.tanh_c[steps]
        o, i, g = gates[:, :, :h], gates[:, :, h : 2 * h], gates[:, :, 3 * h : 4 * h]
        of_oif, of_o, of_if, of_g = (
            slopes[:, :, : 3 * h], slopes[:, :, :h], slopes[:, :, h : 3 * h], slopes[:, :, 3 * h :]
        )  # fmt: skip
        xp.subtract(a.one, gates[:, :, : 3 * h], out=of_oif)
        xp.multiply(of_oif, gates[:, :, : 3 * h], out=of_oif)
        if hard:  # what was not clipped is neither 0 nor 1
            xp.multiply(xp.sign(of_oif, out=of_oif), a.fifth, out=of_oif)
        xp.multiply(of_if, gates[:, :, 3 * h :], out=of_if)
        xp.multiply(of_o, tanh_c, out=of_o)
        xp.multiply(g, g, out=of_g)
        xp.subtract(a.one, of_g, out=of_g)
        xp.multiply(of_g, i, out=of_g)
        xp.multiply(tanh_c, tanh_c, out=tanh_c)
        xp.subtract(a.one, tanh_c, out=tanh_c)
        xp.multiply(tanh_c, o, out=tanh_c)


def _walk_back(xp, a, weights, dys):
    """Walk from the last step to the first and leave dz in ``a.z``, gates in the contract's order."""
    matmul, add, multiply = xp.matmul, xp.add, xp.multiply
    dh, dc, product = a.dh, a.dc, a.products[:, : a.dh.shape[1]]
    dc_of_gates = dc[:, None]
    dc[:] = 0
    for k in range(len(a.steps) - 1, -1, -1):
        s = a.steps[k]
        if dys is not None:
            add(dh, dys[k], out=dh)
        multiply(dh, s.tanh_c, out=product)
        add(dc, product, out=dc)
        multiply(s.slopes_ifg, dc_of_gates, out=s.dz_ifg)
        multiply(s.slope_o, dh, out=s.dz_o)
        multiply(dc, s.f, out=dc)
        matmul(weights, s.input, out=dh)


def _input_gradient(xp, a, x, weights, orders):
    n, t, i = x.shape
    parts = []
    for k, (w_x, _, _) in enumerate(weights):
        xp.matmul(a.z[k].reshape(-1, t * n).T, w_x.T, out=a.dx[k].reshape(t * n, i))
        parts.append(a.dx[k].transpose(1, 0, 2)[:, orders[k]])
    return parts[0].copy() if len(parts) == 1 else xp.add(*parts, out=xp.empty(x.shape, x.dtype))


def _arrays(xp, keep, d, n, t, i, h, dtype):
    """Lay out the arrays of D directions; without ``keep`` the gates of two steps are enough."""
    slots = t + 1 if keep else 2
    a = SimpleNamespace(
        half=xp.full((), 0.5, dtype),
        fifth=xp.full((), 0.2, dtype),
        one=xp.ones((), dtype),
        w_x=xp.empty((d, 4 * h, i + 1), dtype),  # the last column is the bias, of an input that is always 1
        w_h=xp.empty((d, 4 * h, h), dtype),
        x=xp.ones((d, t, n, i + 1), dtype),
        z=xp.empty((d, 4 * h, t, n), dtype),
        h=xp.zeros((d, h, t + 1, n), dtype),
        gates=xp.empty((slots, d, 5 * h, n), dtype),  # o, i, f, g, and the cell state before the step
        tanh_c=xp.empty((slots, d, h, n), dtype),
        products=xp.empty((d, 2 * h, n), dtype),
    )
    if keep:
        a.slopes = xp.empty((t, d, 4 * h, n), dtype)
        a.dh, a.dc = xp.empty((2, d, h, n), dtype)
        a.dx = xp.empty((d, t, n, i), dtype)
    a.steps = [_step(a, keep, s, slots, h) for s in range(t)]
    return a


def _step(a, keep, s, slots, h):
    """Cut the views that one step works on, so that no step slices anything."""
    gates, z = a.gates[s % slots], a.z[:, :, s]
    step = SimpleNamespace(
        h=a.h[:, :, s],
        z=gates[:, : 4 * h],
        input=z,
        o=gates[:, :h],
        oif=gates[:, : 3 * h],
        g=gates[:, 3 * h : 4 * h],
        i_f=gates[:, h : 3 * h],
        g_c=gates[:, 3 * h :],
        c=gates[:, 4 * h :],
        next_c=a.gates[(s + 1) % slots][:, 4 * h :],
        tanh_c=a.tanh_c[s % slots],
        next_h=a.h[:, :, s + 1],
    )
    if keep:
        slopes, (d, _, n) = a.slopes[s], z.shape
        step.f = gates[:, 2 * h : 3 * h]
        step.slope_o, step.dz_o = slopes[:, :h], z[:, 3 * h :]
        step.slopes_ifg, step.dz_ifg = (part.reshape(d, 3, h, n) for part in (slopes[:, h:], z[:, : 3 * h]))
    return step
