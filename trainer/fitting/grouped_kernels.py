"""Triton kernels of the operators of :mod:`trainer.fitting.grouped_operators`.

A program reads from its row of the table (:data:`trainer.fitting.grouped_tables.FIELDS`) which tile of which
layer it computes. There are no atomic additions: sums have a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.fitting.grouped_tables import FIELDS
from trainer.networks.activations import CELU_ALPHA

# Indices of the fields of a program in its row of the table.
_WIDTH = tl.constexpr(len(FIELDS))
_ROW = tl.constexpr(FIELDS.index("row"))
_ROW_END = tl.constexpr(FIELDS.index("row_end"))
_TILE_COLUMN = tl.constexpr(FIELDS.index("tile_column"))
_TILE_OUTPUT = tl.constexpr(FIELDS.index("tile_output"))
_INPUT_COLUMN = tl.constexpr(FIELDS.index("input_column"))
_INPUTS = tl.constexpr(FIELDS.index("inputs"))
_OUTPUT_COLUMN = tl.constexpr(FIELDS.index("output_column"))
_OUTPUTS = tl.constexpr(FIELDS.index("outputs"))
_WEIGHT = tl.constexpr(FIELDS.index("weight"))
_BIAS = tl.constexpr(FIELDS.index("bias"))
_ACTIVATION = tl.constexpr(FIELDS.index("activation"))
_NOISE = tl.constexpr(FIELDS.index("noise"))
_NOISE_WIDTH = tl.constexpr(FIELDS.index("noise_width"))
_KEEP = tl.constexpr(FIELDS.index("keep"))
_PARTIAL = tl.constexpr(FIELDS.index("partial"))
_BIAS_PARTIAL = tl.constexpr(FIELDS.index("bias_partial"))

_ALPHA = tl.constexpr(CELU_ALPHA)
_SPLIT_BLOCK = tl.constexpr(16)
# A NaN stays NaN, as in torch: a training that diverged must not look like one that did not.
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _wide(table, field):
    """Return a field of this program as int64."""
    return tl.load(table + tl.program_id(0) * _WIDTH + field)


@triton.jit
def _field(table, field):
    return _wide(table, field).to(tl.int32)


@triton.jit
def _column(table, field):
    """Return a column field. Layers begin at multiples of 16 columns."""
    return tl.multiple_of(_field(table, field), 16)


@triton.jit
def _count(table, field, ALIGNED: tl.constexpr):
    """Return the width of a layer."""
    count = _field(table, field)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
    return count


@triton.jit
def _parameters(table, field):
    """Return the address of weights or biases, which begin at multiples of 64 numbers."""
    return tl.multiple_of(_wide(table, field).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _activated(x, code):
    """Apply the activation with this code (``KERNEL_ACTIVATIONS``) to each number."""
    y = x
    if code == 0:  # relu
        y = tl.maximum(x, 0.0, propagate_nan=_NAN)
    elif code == 1:  # sigmoid
        y = tl.sigmoid(x)
    elif code == 2:  # tanh
        y = 2 * tl.sigmoid(2 * x) - 1
    elif code == 3:  # softplus
        y = tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0, propagate_nan=_NAN))))
    elif code == 4:  # silu
        y = x * tl.sigmoid(x)
    elif code == 5:  # gelu
        y = 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    elif code == 6:  # celu
        y = tl.where(x > 0, x, _ALPHA * (tl.exp(tl.minimum(x, 0.0, propagate_nan=_NAN) / _ALPHA) - 1))
    else:  # gaussian
        y = tl.exp(-x * x)
    return y


@triton.jit
def _derivative(x, code):
    """Compute the derivative of :func:`_activated`."""
    d = x
    if code == 0:  # relu
        d = tl.where(x > 0, 1.0, tl.where(x == x, 0.0, x))
    elif code == 1:  # sigmoid
        y = tl.sigmoid(x)
        d = y * (1 - y)
    elif code == 2:  # tanh
        y = 2 * tl.sigmoid(2 * x) - 1
        d = 1 - y * y
    elif code == 3:  # softplus
        d = tl.where(x > 20, 1.0, tl.sigmoid(x))
    elif code == 4:  # silu
        y = tl.sigmoid(x)
        d = y * (1 + x * (1 - y))
    elif code == 5:  # gelu
        d = 0.5 * (1 + tl.math.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif code == 6:  # celu
        d = tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0, propagate_nan=_NAN) / _ALPHA))
    else:  # gaussian
        d = -2 * x * tl.exp(-x * x)
    return d


@triton.jit
def _dropout_scale(table, noise, row, column, mask):
    """Return the dropout factor of each number, 0 or 1 / keep; 1 where the network has no dropout."""
    start = _wide(table, _NOISE)
    keep = _field(table, _KEEP).to(tl.float32, bitcast=True)
    place = (
        start + row.to(tl.int64)[:, None] * tl.multiple_of(_field(table, _NOISE_WIDTH), 16) + column[None, :]
    )
    drawn = tl.load(noise + place, mask=mask & (place >= 0), other=0.0)
    return tl.where(drawn < keep, 1 / keep, 0.0)


@triton.jit
def _before_activation(table, hidden, width, noise, row, column, mask, DROPS: tl.constexpr):
    """Load a tile of a layer's input after dropout; return it with the dropout factors."""
    place = row.to(tl.int64)[:, None] * width + (_column(table, _INPUT_COLUMN) + column)[None, :]
    x = tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0
    if DROPS:
        scale = _dropout_scale(table, noise, row, column, mask)
        x *= scale
    return x, scale


@triton.jit
def _operand(x, PRECISION: tl.constexpr):
    """Round an operand of a product to the nearest value of the precision."""
    if PRECISION == "bfloat16":
        x = x.to(tl.bfloat16)
    else:
        x = x.to(tl.float32)
        if PRECISION == "tf32":
            # The hardware would truncate.
            x = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    a = _operand(a, PRECISION)
    b = _operand(b, PRECISION)
    if PRECISION == "float32":
        total = tl.dot(a, b, total, input_precision="ieee")
    else:
        total = tl.dot(a, b, total, input_precision="tf32")
    return total


@triton.jit
def linear_kernel(
    table, hidden, width, source, stride, features, rows, noise,
    FIRST: tl.constexpr, GATHER: tl.constexpr, DROPS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    row = _field(table, _ROW) + tl.arange(0, BLOCK_ROWS)
    is_row = row < _field(table, _ROW_END)
    column = _column(table, _TILE_COLUMN) + tl.arange(0, BLOCK_COLUMNS)
    is_column = column < _count(table, _OUTPUTS, ALIGNED)
    inputs = features
    if not FIRST:
        inputs = _count(table, _INPUTS, ALIGNED)
    weight = _parameters(table, _WEIGHT) + column[None, :] * inputs
    code = _field(table, _ACTIVATION)
    index = row.to(tl.int64)
    if GATHER:
        index = tl.load(rows + row, mask=is_row, other=0).to(tl.int64)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in tl.range(0, inputs, BLOCK_INNER, num_stages=3 if FIRST else 2):
        inner = start + tl.arange(0, BLOCK_INNER)
        is_inner = inner < inputs
        mask = is_row[:, None] & is_inner[None, :]
        if FIRST:
            x = tl.load(source + index[:, None] * stride + inner[None, :], mask=mask, other=0.0)
        else:
            x, _ = _before_activation(table, hidden, width, noise, row, inner, mask, DROPS)
            x = _activated(x, code)
        w = tl.load(weight + inner[:, None], mask=is_inner[:, None] & is_column[None, :], other=0.0)
        total = _product(x, w, total, PRECISION)
    total += tl.load(_parameters(table, _BIAS) + column, mask=is_column, other=0.0)[None, :]
    place = row.to(tl.int64)[:, None] * width + (_column(table, _OUTPUT_COLUMN) + column)[None, :]
    tl.store(hidden + place, total.to(hidden.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def atomic_energies_kernel(
    table, energies, networks, hidden, width, noise,
    DROPS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = _field(table, _ROW) + tl.arange(0, BLOCK_ROWS)
    is_row = row < _field(table, _ROW_END)
    inputs = _count(table, _INPUTS, ALIGNED)
    weight = _wide(table, _WEIGHT).to(tl.pointer_type(tl.float32))
    code = _field(table, _ACTIVATION)
    energy = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, inputs, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        is_column = column < inputs
        mask = is_row[:, None] & is_column[None, :]
        x, _ = _before_activation(table, hidden, width, noise, row, column, mask, DROPS)
        w = tl.load(weight + column, mask=is_column, other=0.0)
        energy += tl.sum(_activated(x, code) * w[None, :], 1)
    energy += tl.load(_wide(table, _BIAS).to(tl.pointer_type(tl.float32)))
    place = row.to(tl.int64) * networks + _field(table, _OUTPUT_COLUMN)
    tl.store(energies + place, energy, mask=is_row)


@triton.jit
def output_gradient_kernel(
    table, hidden_gradient, partials, hidden, width, noise, grad_outputs, networks,
    DROPS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Process the rows of a split, for some columns of the last hidden layer."""
    column = _column(table, _TILE_COLUMN) + tl.arange(0, BLOCK_COLUMNS)
    is_column = column < _count(table, _INPUTS, ALIGNED)
    w = tl.load(_wide(table, _WEIGHT).to(tl.pointer_type(tl.float32)) + column, mask=is_column, other=0.0)
    code = _field(table, _ACTIVATION)
    network = _field(table, _OUTPUT_COLUMN)
    row_end = _field(table, _ROW_END)
    over_weight = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    over_bias = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in tl.range(_field(table, _ROW), row_end, BLOCK_ROWS, num_stages=3):
        row = start + tl.arange(0, BLOCK_ROWS)
        is_row = row < row_end
        mask = is_row[:, None] & is_column[None, :]
        grad_output = tl.load(grad_outputs + row.to(tl.int64) * networks + network, mask=is_row, other=0.0)
        x, scale = _before_activation(table, hidden, width, noise, row, column, mask, DROPS)
        over_input = grad_output[:, None] * w[None, :] * _derivative(x, code) * scale
        place = row.to(tl.int64)[:, None] * width + (_column(table, _INPUT_COLUMN) + column)[None, :]
        tl.store(hidden_gradient + place, over_input.to(hidden_gradient.dtype.element_ty), mask=mask)
        over_weight += grad_output[:, None] * _activated(x, code)
        over_bias += grad_output
    place = _wide(table, _PARTIAL) + column
    tl.store(partials + place, tl.sum(over_weight, 0), mask=is_column & (place >= 0))
    bias_place = _wide(table, _BIAS_PARTIAL)
    tl.store(partials + bias_place, tl.sum(over_bias, 0), mask=bias_place >= 0)


@triton.jit
def input_gradient_kernel(
    table, hidden_gradient, hidden, width, noise,
    DROPS: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    row = _field(table, _ROW) + tl.arange(0, BLOCK_ROWS)
    is_row = row < _field(table, _ROW_END)
    column = _column(table, _TILE_COLUMN) + tl.arange(0, BLOCK_COLUMNS)
    inputs = _count(table, _INPUTS, ALIGNED)
    outputs = _count(table, _OUTPUTS, ALIGNED)
    is_column = column < inputs
    weight = _parameters(table, _WEIGHT) + column[None, :]
    over_output = hidden_gradient + row.to(tl.int64)[:, None] * width + _column(table, _OUTPUT_COLUMN)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, outputs, BLOCK_INNER):
        inner = start + tl.arange(0, BLOCK_INNER)
        is_inner = inner < outputs
        g = tl.load(over_output + inner[None, :], mask=is_row[:, None] & is_inner[None, :], other=0.0)
        w = tl.load(weight + inner[:, None] * inputs, mask=is_inner[:, None] & is_column[None, :], other=0.0)
        total = _product(g, w, total, PRECISION)
    mask = is_row[:, None] & is_column[None, :]
    x, scale = _before_activation(table, hidden, width, noise, row, column, mask, DROPS)
    total *= _derivative(x, _field(table, _ACTIVATION)) * scale
    place = row.to(tl.int64)[:, None] * width + (_column(table, _INPUT_COLUMN) + column)[None, :]
    tl.store(hidden_gradient + place, total.to(hidden_gradient.dtype.element_ty), mask=mask)


@triton.jit
def _weight_gradient(
    table, partials, hidden_gradient, hidden, width, source, stride, inputs, rows, noise,
    FIRST: tl.constexpr, GATHER: tl.constexpr, DROPS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of the weights of a layer, summed over the rows of a split."""
    output = _column(table, _TILE_OUTPUT) + tl.arange(0, BLOCK_ROWS)
    outputs = _count(table, _OUTPUTS, ALIGNED)
    is_output = output < outputs
    column = _column(table, _TILE_COLUMN) + tl.arange(0, BLOCK_COLUMNS)
    is_column = column < inputs
    code = _field(table, _ACTIVATION)
    row_end = _field(table, _ROW_END)
    over_output = hidden_gradient + (_column(table, _OUTPUT_COLUMN) + output)[None, :]
    over_weight = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    over_bias = tl.zeros((BLOCK_INNER, BLOCK_ROWS), tl.float32)
    for start in tl.range(_field(table, _ROW), row_end, BLOCK_INNER, num_stages=3 if FIRST else 2):
        row = start + tl.arange(0, BLOCK_INNER)
        is_row = row < row_end
        mask = is_row[:, None] & is_column[None, :]
        index = row.to(tl.int64)
        g = tl.load(
            over_output + index[:, None] * width, mask=is_row[:, None] & is_output[None, :], other=0.0
        )
        if FIRST:
            if GATHER:
                index = tl.load(rows + row, mask=is_row, other=0).to(tl.int64)
            x = tl.load(source + index[:, None] * stride + column[None, :], mask=mask, other=0.0)
        else:
            x, _ = _before_activation(table, hidden, width, noise, row, column, mask, DROPS)
            x = _activated(x, code)
        over_weight = _product(tl.trans(g), x, over_weight, PRECISION)
        over_bias += g.to(tl.float32)
    place = tl.multiple_of(_wide(table, _PARTIAL), 16) + output[:, None] * inputs + column[None, :]
    tl.store(partials + place, over_weight, mask=is_output[:, None] & is_column[None, :])
    bias_place = _wide(table, _BIAS_PARTIAL) + output
    tl.store(partials + bias_place, tl.sum(over_bias, 0), mask=is_output & (bias_place >= 0))


@triton.jit
def weight_gradient_kernel(
    table, partials, hidden_gradient, hidden, width, source, stride, features, rows, noise,
    DEEP: tl.constexpr, GATHER: tl.constexpr, DROPS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of first layers and, if ``DEEP``, of the other hidden layers too."""
    if DEEP:
        if _field(table, _INPUT_COLUMN) >= 0:
            _weight_gradient(
                table, partials, hidden_gradient, hidden, width, source, stride,
                _count(table, _INPUTS, ALIGNED), rows, noise, False, False, DROPS, ALIGNED, PRECISION,
                BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER,
            )  # fmt: skip
            return
    _weight_gradient(
        table, partials, hidden_gradient, hidden, width, source, stride, features,
        rows, noise, True, GATHER, False, ALIGNED, PRECISION, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER,
    )  # fmt: skip


@triton.jit
def sum_partials_kernel(table, partials, BLOCK: tl.constexpr):
    """Add up some columns of the partial sums (splits, length) of an element's network."""
    row = table + tl.program_id(0) * 5
    target = tl.load(row)
    partial = tl.load(row + 1)
    length = tl.load(row + 2)
    splits = tl.load(row + 3).to(tl.int32)
    column = tl.load(row + 4) + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, splits, _SPLIT_BLOCK):
        split = start + tl.arange(0, _SPLIT_BLOCK)
        mask = (split < splits)[:, None] & (column < length)[None, :]
        some = tl.load(
            partials + partial + split.to(tl.int64)[:, None] * length + column[None, :], mask=mask, other=0.0
        )
        total += tl.sum(some, 0)
    tl.store(partials + target + column, total, mask=column < length)
