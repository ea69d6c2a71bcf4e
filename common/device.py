"""Where and how a script computes: device, precision, processes, and the optimiser step.

    dev = Device(args)                 # before the model: seeds, device, process group
    net = dev.wrap(model)              # before the optimiser
    with dev.autocast():
        loss = F.cross_entropy(net(images), labels)
    if dev.step(loss, optimizer):      # once a micro-batch; True when the weights moved
        schedule.step()

Started by `torchrun`, every process computes its share of each batch.
"""

import argparse
import atexit
import collections
import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from common import fail, seed_of

# A thread of gloo's lets go of a tensor only after the process was told that it is reduced. If the
# last reference to it were that thread's, it would need the interpreter, and abort a process that
# is ending by then: the newest tensors stay referenced here.
REDUCED: collections.deque[Tensor] = collections.deque(maxlen=16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Device:
    """The device of this process, and its place (`rank` of `world`) among the processes.

    `auto_precision="fp32"` is for scripts that measured a loss of speed with bf16.
    """

    def __init__(self, args: argparse.Namespace, auto_precision: str = "bf16"):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main, self.quiet = self.rank == 0, args.quiet
        self.accumulate, self.clip, self.fsdp = args.accumulate, args.clip, args.fsdp
        self.compile, self.seed, self.steps = args.compile, args.seed, 0
        self.device = torch.device(choose_device(args.device))
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32
            torch.backends.cudnn.deterministic = True  # resuming is to be exact
        if self.device.type == "cpu":
            keep_memory()
        self.precision = args.precision
        if self.precision == "auto":
            self.precision = auto_precision if multiplies_bf16(self.device.type) else "fp32"
        self.distributed = "RANK" in os.environ
        if self.fsdp and not self.distributed:
            fail("--fsdp shards over processes: start it with torchrun --nproc-per-node N")
        if self.distributed and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
            dist.barrier()  # one that fails right away is not to leave while others connect
            atexit.register(dist.destroy_process_group)
        self.nets: list[tuple[nn.Module, list[Tensor]]] = []  # with their parameters, or shards
        self.parts: dict[Optimizer, list[Tensor]] = {}  # counts of the parts seen of this step
        self.scalers: dict[Optimizer, torch.amp.GradScaler] = {}
        self.bad_step = torch.full((), -1, device=self.device)  # first step of a non-finite loss
        torch.manual_seed(self.seed)  # every process builds the same weights

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        return f"{name} x {self.world}" if self.world > 1 else name

    def say(self, *text: Any) -> None:
        """Prints on rank 0, unless --quiet."""
        if self.main and not self.quiet:
            print(*text, flush=True)

    def autocast(self) -> AbstractContextManager:
        """The chosen precision, for the forward pass and the loss."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def wrap(self, model: nn.Module, channels_last: bool = True) -> nn.Module:
        """Moves `model` to the device, in place, and returns what to call in training.

        `channels_last=False` is for convolutional models that measured a loss with that format.
        """
        convolutional = any(isinstance(m, nn.Conv2d) for m in model.modules())
        if convolutional and channels_last and not self.fsdp:  # shards can't have that format
            model.to(memory_format=torch.channels_last)
        model.to(self.device)
        net = model
        if self.fsdp:
            shard(model, init_device_mesh(self.device.type, (self.world,)))
        if self.compile:
            model.compile()
        if self.distributed and not self.fsdp:
            ids = [self.device.index] if self.device.type == "cuda" else None
            net = DistributedDataParallel(model, device_ids=ids)
        self.nets.append((net, list(net.parameters())))
        self.synchronise(net, self.accumulate == 1)
        if self.rank:  # from here on each process draws its own dropout
            torch.manual_seed(seed_of("rank", self.seed, self.rank))
        return net

    def synchronise(self, net: nn.Module, on: bool) -> None:
        """Whether the next forward pass of `net` prepares to add up gradients over processes."""
        if self.fsdp:
            net.set_requires_gradient_sync(on)
        elif isinstance(net, DistributedDataParallel):
            net.require_backward_grad_sync = on

    def scaler(self, optimizer: Optimizer) -> torch.amp.GradScaler:
        """The optimiser's own gradient scaler; it does nothing unless the precision is fp16."""
        if optimizer not in self.scalers:
            enabled = self.precision == "fp16"
            # A fused optimiser would skip a step that overflowed by itself, and its momentum would
            # then be memory that nobody wrote: the scaler is to skip it.
            optimizer._step_supports_amp_scaling = False
            self.scalers[optimizer] = torch.amp.GradScaler(self.device.type, enabled=enabled)
        return self.scalers[optimizer]

    def step(self, loss: Tensor, optimizer: Optimizer, count: int | Tensor | None = None) -> bool:
        """Backward; and, with the last part of a step, unscale, clip, step and zero.

        `loss` is the mean over one of K equal parts; or, with `count=n`, the sum over n items,
        and then the gradient is divided by the items of all parts and processes. Only the
        optimiser's own parameters get gradients. Returns True when the weights moved (with fp16,
        gradients that overflow skip the step).
        """
        params = [p for group in optimizer.param_groups for p in group["params"]]
        scaler, counts = self.scaler(optimizer), self.parts.setdefault(optimizer, [])
        finite = torch.isfinite(loss.detach())
        self.bad_step = torch.where(finite | (self.bad_step >= 0), self.bad_step, self.steps + 1)
        self.backward(scaler.scale(loss / self.accumulate if count is None else loss), params)
        counts.append(torch.as_tensor(1 if count is None else count, device=self.device))
        own = set(map(id, params))
        wrapped = self.nets if self.distributed else []  # one process has nothing to synchronise
        nets = [net for net, owned in wrapped if any(id(p) in own for p in owned)]
        if len(counts) < self.accumulate:
            for net in nets:
                self.synchronise(net, len(counts) == self.accumulate - 1)
            return False
        scaler.unscale_(optimizer)
        grads = [p.grad for p in params if p.grad is not None]
        if count is not None:  # the processes' gradients were averaged: undo that, then divide
            items = self.sum(torch.stack(counts).sum()).clamp(min=1)
            torch._foreach_mul_(grads, (self.world / items).to(grads[0].dtype))
        if self.clip:
            nn.utils.clip_grad_norm_(params, self.clip)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        counts.clear()
        for net in nets:
            self.synchronise(net, self.accumulate == 1)
        return scaler.get_scale() >= scale

    def backward(self, loss: Tensor, params: list[Tensor]) -> None:
        """Gradients of `loss` for `params` alone, so that two optimisers don't leak."""
        if not self.fsdp:
            return loss.backward(inputs=[p for p in params if p.requires_grad])
        # A sharded parameter is not in the graph (its gathered copy is): clear the others instead.
        own = set(map(id, params))
        others = [p for _, owned in self.nets for p in owned if id(p) not in own]
        if self.accumulate > 1 and any(p.requires_grad for p in others):
            fail("--fsdp with --accumulate can't keep two optimisers apart: use one of them")
        loss.backward()
        for p in others:
            p.grad = None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.distributed:
            REDUCED.append(tensor)
            dist.all_reduce(tensor)
        return tensor

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes, without waiting for the GPU."""
        if not self.distributed:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        REDUCED.append(tensor)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, value: Any) -> list:
        """The values of all processes, in order of rank."""
        values = [value] * self.world
        if self.distributed:
            dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def forked(key: str, dev: Device, alike: bool = False) -> Iterator[None]:
    """Random numbers of their own, so that measuring changes no training.

    Each process has others, unless they are to be `alike`.
    """
    mps = dev.device.type == "mps"  # its numbers fork_rng can't keep
    state = torch.mps.get_rng_state() if mps else None
    with torch.random.fork_rng([dev.device] if dev.device.type == "cuda" else []):
        torch.manual_seed(seed_of(key, 0 if alike else dev.rank))
        try:
            yield
        finally:
            if mps:
                torch.mps.set_rng_state(state)


def peak_memory(kind: str = "cpu") -> float:
    """Most memory in MiB that this process has held: of the CUDA device, or resident.

    Linux hands a process the peak of the one that started it, as getrusage tells; the peak of its
    own memory stands in /proc.
    """
    if kind == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows has none
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, where glibc manages it; else does nothing.

    By itself glibc gives large tensors back at once, and fetches their pages anew in the next
    step: 30% of the processor's time in transformer_small's, 7% in ResNet-20's, on one core.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such library: Windows
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks, too, come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes free at its end


def choose_device(name: str) -> str:
    """`auto` becomes the best device there is; a device that isn't there ends in one line."""
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name == "auto":
        return next((kind for kind, available in there.items() if available()), "cpu")
    if name in there and not there[name]():
        fail(f"--device {name}: there is none on this machine; use --device cpu")
    return name


def multiplies_bf16(kind: str) -> bool:
    """Whether the hardware multiplies bf16 natively, so that it is faster than fp32.

    Intel's processors without AMX (or whose machine hides it) have AVX-512's instructions for bf16,
    but do no more with them: a Xeon (Sapphire Rapids) multiplied matrices at 143 GFLOP/s in fp32
    and 83 in bf16, and a step of gpt_tiny, resnet20 or vgg took 1.2 to 1.4 times as long in bf16.
    """
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    able = torch.cpu.get_capabilities()
    intel = "Intel" in able.get("cpu_name", "")
    native = able.get("amx_bf16", False) or (able.get("avx512_bf16", False) and not intel)
    return kind == "cpu" and native


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the repeated blocks of `model` one by one, innermost first, then the rest of it."""
    for module in reversed(list(model.modules())):
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                if any(block.children()) and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
