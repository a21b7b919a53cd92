"""Where a GPU would run a compiled function, found on any machine: TensorFlow's wheel registers its GPU kernels everywhere.

A kernel says for which types it is, and which of its arguments are in the host's memory. From that follows, for each tensor of
a graph, whether a device holds it. An operation that takes such a tensor into the host's memory makes the host wait for the
device. The model leaves out what TensorFlow optimizes away before it runs: identities, and whatever follows from constants.
"""

import collections
import functools
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

HOST, DEVICE, CONSTANT = "host", "device", "constant"  # where a tensor is; a constant is wherever it is wanted
CALLS = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}
THE_FUNCTION = "the function"
FUNCTIONS = ("cond", "body", "then_branch", "else_branch", "f")  # attributes that hold the functions of a call


class Finding(NamedTuple):
    """An operation that the host waits for, or that has no kernel for a GPU."""

    function: str
    operation: str
    type: str
    about: str


@functools.cache
def _definition(kind):
    return op_def_registry.get(kind)


@functools.cache
def _kernels(kind):
    found = kernels.get_registered_kernels_for_op(kind).kernel
    return [kernel for device in ("GPU", "DEFAULT") for kernel in found if kernel.device_type == device]


def gpu_kernel(node):
    """The KernelDef with which a GPU runs a NodeDef; None if there is none for its types."""
    types = {}
    for attribute in _definition(node.op).attr:
        value = node.attr[attribute.name]
        types[attribute.name] = {value.type} if attribute.type == "type" else set(value.list.type)
    for kernel in _kernels(node.op):
        allowed = {constraint.name: set(constraint.allowed_values.list.type) for constraint in kernel.constraint}
        if all(types[name] <= values for name, values in allowed.items() if values):
            return kernel
    return None


def _names(node, arguments):
    """The name of the argument of each tensor that a node takes or gives."""
    names = []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        names += [argument.name] * count
    return names


def _at_a_call(dtype):
    """Where an argument or result of a function is: TensorFlow keeps int32 in the host's memory there."""
    return HOST if dtype in (tf.int32, tf.resource, tf.string) else DEVICE


class GpuGraph:
    """A ConcreteFunction as a GPU would run it.

    Attributes:
      waits: [Finding] of tensors that an operation takes from a device into the host's memory.
      on_host: [Finding] of operations without a kernel for a GPU.
      operations: Counter of all types of operations.
    """

    def __init__(self, function):
        self.waits, self.on_host, self.operations, self._seen = [], [], collections.Counter(), set()
        self._walk(function.graph, THE_FUNCTION)

    def waits_in_a_loop(self):
        """Those of `waits` that happen again and again, not once per call of the function."""
        return [found for found in self.waits if found.function != THE_FUNCTION]

    def _walk(self, graph, name):
        memory = {}
        for operation in graph.get_operations():
            self.operations[operation.type] += 1
            inputs = [memory[tensor.ref()] for tensor in operation.inputs]
            for tensor, where in zip(operation.outputs, self._outputs(operation, inputs, name), strict=True):
                memory[tensor.ref()] = where
        for tensor in graph.outputs:
            self._take(memory[tensor.ref()], _at_a_call(tensor.dtype), name, tensor.op, "result")
        return [memory[tensor.ref()] for tensor in graph.outputs]

    def _take(self, where, wanted, name, operation, about):
        if where == DEVICE and wanted == HOST:
            self.waits.append(Finding(name, operation.name, operation.type, about))

    def _outputs(self, operation, inputs, name):
        """Where the results of an operation are; notes what it waits for."""
        results = [tensor.dtype for tensor in operation.outputs]
        if operation.type == "Placeholder":
            return [_at_a_call(dtype) for dtype in results]
        if operation.type == "Identity":
            return inputs
        if operation.type == "Const" or (inputs and set(inputs) == {CONSTANT} and not operation.op_def.is_stateful):
            return [CONSTANT] * len(results)
        if operation.type in CALLS:
            return self._call(operation, inputs, name)
        kernel = gpu_kernel(operation.node_def)
        if kernel is None:
            self.on_host.append(Finding(name, operation.name, operation.type, ", ".join(dtype.name for dtype in results)))
        on_host, definition = set(kernel.host_memory_arg) if kernel else None, _definition(operation.type)
        arguments = _names(operation.node_def, definition.input_arg)
        for argument, where, tensor in zip(arguments, inputs, operation.inputs, strict=True):
            if on_host is None or argument in on_host or tensor.dtype in (tf.resource, tf.string):
                self._take(where, HOST, name, operation, f"{argument} {tensor.dtype.name}")
        return [HOST if on_host is None or argument in on_host or dtype in (tf.resource, tf.string) else DEVICE
                for argument, dtype in zip(_names(operation.node_def, definition.output_arg), results, strict=True)]

    def _call(self, operation, inputs, name):
        """A function call or a control flow operation, which decides on the host."""
        for tensor, where in zip(operation.inputs, inputs, strict=True):
            self._take(where, _at_a_call(tensor.dtype), name, operation, f"argument {tensor.dtype.name}")
        if operation.type in ("If", "StatelessIf"):
            self._take(inputs[0], HOST, name, operation, "condition")
        for attribute in FUNCTIONS:
            called = operation.node_def.attr[attribute].func.name if attribute in operation.node_def.attr else ""
            if called and called not in self._seen:
                self._seen.add(called)
                results = self._walk(operation.graph._get_function(called).graph, f"{operation.name}, {attribute}")
                if attribute == "cond":
                    self._take(results[0], HOST, name, operation, "condition of the loop")
        return [_at_a_call(tensor.dtype) for tensor in operation.outputs]
