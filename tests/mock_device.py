"""A mock device: its tensors report to be on a GPU, compute on the CPU, and reject what a GPU would reject.

`with mock_device("cuda")` finds code that mixes devices, passes a GPU tensor to numpy, or (on "mps") uses float64.
Values are real, so control flow may depend on them. Other differences between GPU and CPU are not imitated.
"""

from __future__ import annotations

import contextlib
import functools
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import DefaultDeviceType

MIXED = {"copy_", "_to_copy", "index", "index_put_", "index_put"}  # take tensors of several devices on a real GPU too
UNDERNEATH = "mock_gpu"  # our name for torch's device of third-party backends
NOW = {"device": torch.device("cpu")}  # the mocked device; "cpu": none


class OnDevice(torch.Tensor):
    """Wraps a CPU tensor, `on_cpu`, and reports to be on `NOW["device"]`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        form = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(UNDERNEATH, 0), **form)

    def __init__(self, inner):
        if NOW["device"].type == "mps" and inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        self.on_cpu = inner

    @property
    def device(self):
        return NOW["device"]

    def to(self, *args, **kwargs):
        return super().to(*underneath(args), **underneath(kwargs))

    def tolist(self):
        return self.on_cpu.tolist()

    def __getitem__(self, index):
        return super().__getitem__(lists_as_tensors(index))

    def __setitem__(self, index, value):
        super().__setitem__(lists_as_tensors(index), value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Call torch's functions with the device underneath, as they would look for a real GPU first."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__deepcopy__:  # names no device, but has a long list of all that is copied
            return func(*args)
        kwargs = underneath(kwargs or {})
        if func is torch.tensor and "device" in kwargs:  # it copies to its device bypassing all modes
            return torch.tensor(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        return func(*(args if func is torch.device else underneath(args)), **kwargs)


class Operations(TorchDispatchMode):
    """Handle operations without such a tensor among their arguments: torch.zeros(device=...), Tensor.to."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def underneath(arguments):
    """The arguments with the mocked device replaced by the device underneath."""

    def one(argument):
        names = isinstance(argument, (str, torch.device)) and str(argument).partition(":")[0] == NOW["device"].type
        return torch.device(UNDERNEATH, 0) if names else argument

    return tree_map(one, arguments)


def lists_as_tensors(index):
    parts = index if isinstance(index, tuple) else (index,)
    made = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
    return made if isinstance(index, tuple) else made[0]


def run(func, args, kwargs):
    """Run an operation on the inner tensors; the results are on the device a GPU would use."""
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    foreign = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if ours and foreign and name not in MIXED:
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {NOW['device']} and cpu")
    there = isinstance(tensors[0], OnDevice) if name in MIXED else bool(ours)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == UNDERNEATH
        kwargs = {**kwargs, "device": torch.device("cpu")} if there else kwargs
    inner, inner_kwargs = tree_map(lambda leaf: getattr(leaf, "on_cpu", leaf), (args, kwargs))
    known = {id(tensor.on_cpu): tensor for tensor in ours}  # in-place operations return the same object

    def outer(leaf):
        if not isinstance(leaf, torch.Tensor) or not there:
            return leaf
        before = known.get(id(leaf))
        return before if before is not None and before.shape == leaf.shape else OnDevice(leaf)

    return tree_map(outer, func(*inner, **inner_kwargs))


@functools.cache
def register():
    """Register a backend for the device underneath, once."""
    DefaultDeviceType.get_device_type()  # keeps the machine's own accelerator, before one is mocked
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch does not support devices written in Python")
    backend_registration._setup_privateuseone_for_python_backend(UNDERNEATH)


@contextlib.contextmanager
def mock_device(name):
    """Make this machine appear to have a GPU, "cuda" or "mps"."""
    register()
    gpu = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "Mock GPU",
        "mem_get_info": (10**12, 10**12),
    }
    gpu |= {"synchronize": None, "reset_peak_memory_stats": None, "max_memory_allocated": 0}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(NOW, device=torch.device(name)))
        stack.enter_context(mock.patch.object(torch.mps, "synchronize"))
        for function, value in gpu.items():
            stack.enter_context(mock.patch.object(torch.cuda, function, mock.Mock(return_value=value)))
        stack.enter_context(Operations())
        stack.enter_context(Calls())
        yield
