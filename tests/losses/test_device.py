"""The way to the loss on a GPU, without one: in Triton's interpreter, and by counting launches.

Triton decides at its import how it runs kernels, so the tests that need the interpreter run in a
process of their own, which the first test starts:
``TRITON_INTERPRET=1 pytest -n 0 tests/losses/test_device.py``.
"""

import functools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lovasz_repro.losses import (
    AccumulationWindow,
    HammingLoss,
    backends,
    inputs,
    lovasz_softmax,
)
from lovasz_repro.losses.histogram import ProbabilityBins

pytestmark = [
    pytest.mark.skipif(not backends.HAS_TRITON, reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, of NaN
]
IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IN_INTERPRETER, reason="runs in Triton's interpreter")
OPTIONS = [
    {},
    {"per_image": True},
    {"classes": "all"},
    {"classes": "all", "per_image": True},
    {"classes": [4, 2]},
    {"classes": [4, 2], "per_image": True},
    {"class_weights": [0.0, 2.0, 0.5, 0.0, 0.0, 1.0]},
    {"ignore_index": 255},
    {"ignore_index": 255, "per_image": True},
    {"ignore_index": 1, "classes": "all"},
]


@pytest.mark.skipif(IN_INTERPRETER, reason="this is that process")
@pytest.mark.parametrize("some", ["splits_bins", pytest.param("", marks=pytest.mark.slow)])
def test_in_the_interpreter(some: str) -> None:
    """One test that passes through all kernels, or all of them, which takes minutes."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, "-k", some, __file__],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """The device's module, as if the CPU were a device that kernels have been tried on."""
    from lovasz_repro.losses import device

    monkeypatch.setattr(backends, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(backends, "_tried_kernels", lambda _: device)
    monkeypatch.setattr(inputs, "_looked", True)
    monkeypatch.setattr(backends, "FEW_PIXELS", 1)
    monkeypatch.setattr(device, "SCANNED", 2**14)  # each step of the interpreter is slow
    return device


def batch(*shape: int, classes: int = 6, used: int = 4, scale: float = 2.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, used, shape, generator=generator)
    return scale * torch.randn(shape[0], classes, *shape[1:], generator=generator), labels


def found(logits: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = lovasz_softmax(leaf, labels, **options)
    value.backward()
    return value.detach(), leaf.grad


def assert_near(logits: Tensor, labels: Tensor, near: float, **options) -> None:
    """To the sort in float64."""
    value, gradient = found(logits, labels, **options)
    exact, expected = found(logits.double(), labels, **options | {"method": "sort", "bins": None})
    assert value.item() == pytest.approx(exact.item(), abs=2e-7)
    assert (gradient - expected).norm() <= near * expected.norm() + 1e-12


@interpreted
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernels_agree_with_a_sort_in_float64(device, options: dict) -> None:
    logits, labels = batch(3, 9, 50)
    if options.get("ignore_index") == 255:
        labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
        labels[-1] = 255
        logits[labels[:, None].expand_as(logits) == 255] = math.nan
    assert_near(logits, labels, 2e-5, **options)


@interpreted
@pytest.mark.parametrize("scale", [0.0, 10.0])
def test_auto_splits_bins_where_errors_crowd(
    device, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "SCANNED", 1024)  # counts are carried from block to block
    logits, labels = batch(2, 40, 60, classes=3, used=3, scale=scale)
    labels[labels == 2] = 0
    labels[0, 0, :3] = 2  # a rare class
    assert_near(logits, labels, 1e-4)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_layouts(device, dtype: torch.dtype) -> None:
    logits, labels = batch(2, 9, 11, classes=3, used=2)
    logits = logits.to(dtype)
    value, gradient = found(logits.float(), labels)
    for other, kind in (
        (logits.contiguous(memory_format=torch.channels_last), torch.uint8),
        (logits.transpose(2, 3).contiguous().transpose(2, 3), torch.int32),
        (logits, torch.bool),
    ):
        same, changed = found(other, labels.to(kind))
        assert same.item() == value.item()
        assert changed.dtype == dtype
        torch.testing.assert_close(changed, gradient.to(dtype), rtol=2**-7, atol=1e-7)


@interpreted
def test_many_classes(device) -> None:
    logits, labels = batch(1, 9, 11, classes=150, used=150)
    assert_near(logits, labels, 1e-3, method="histogram", bins=2**10)


@interpreted
def test_nan_infinity_and_labels_out_of_range(device) -> None:
    logits, labels = batch(2, 5, 7)
    logits[:, 5] = -math.inf
    assert_near(logits, labels, 2e-5)
    logits[0, 2, 1, 1] = math.nan
    value, gradient = found(logits, labels)
    assert value.isnan()
    assert gradient[0, :, 1, 1].isnan().all()
    gradient[0, :, 1, 1] = 0
    assert gradient.isfinite().all()
    logits, labels = batch(2, 5, 7)
    for wrong in (6, -1):
        labels[0, 0, 0] = wrong
        options = {"method": "histogram", "bins": 64}
        assert found(logits, labels, **options)[0].isnan()
        assert found(logits, labels, ignore_index=wrong, **options)[0].isfinite()


@interpreted
@pytest.mark.usefixtures("device")
def test_the_first_call_looks_at_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = batch(2, 5, 7)
    labels[0, 0, 0] = 255
    monkeypatch.setattr(inputs, "_looked", False)
    with pytest.raises(ValueError, match="ignore_index=255"):
        lovasz_softmax(logits, labels)
    with pytest.raises(ValueError, match="labels have shape"):
        lovasz_softmax(logits, labels[:1])


@interpreted
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"per_image": True}], ids=str)
def test_few_pixels_and_none(device, shape: tuple[int, ...], options: dict) -> None:
    logits, labels = batch(*shape)
    options = options | {"method": "histogram", "bins": 2**13}
    assert_near(logits, labels, 1e-3, **options)
    value, gradient = found(logits, torch.full_like(labels, 255), ignore_index=255, **options)
    assert value == 0
    assert not gradient.any()


@interpreted
@pytest.mark.parametrize("parts", [0, 64])
def test_counts_of_shares_add_up_to_those_of_the_batch(device, parts: int) -> None:
    """Bit by bit, whatever the share, in both passes: what ranks add up."""
    logits, labels = batch(5, 211)
    plan = (None, True, 1, 32, parts)

    def sums(images: slice, others: list[Tensor] = ()) -> list[Tensor]:
        """What a rank brings to each sum, if it gets those of others from there."""
        brought = []

        def total(mine: Tensor) -> Tensor:
            brought.append(mine.clone())
            for other in others:
                mine += other[len(brought) - 1]
            return mine

        device.forward(logits[images], labels[images], None, *plan, total=total)
        return brought

    whole = sums(slice(None))
    assert len(whole) == (2 if parts else 1)
    counted = ProbabilityBins(32).unpack(whole[0][: 6 * 2 * 33])[0]
    assert counted.sum() == labels.numel() * 6
    shares = [slice(0, 1), slice(1, 3), slice(3, 3), slice(3, 5)]
    first = [sums(share) for share in shares]
    assert torch.equal(sum(one[0] for one in first), whole[0])
    if parts:  # the second pass of each share, after the first of all
        rest = [
            sums(share, [[other[0], other[1]] for other in first if other is not one])
            for share, one in zip(shares, first, strict=True)
        ]
        assert torch.equal(sum(one[1] for one in rest), whole[1])


@interpreted
def test_a_window_carries_counts(device) -> None:
    logits, labels = batch(4, 9, 11)
    expected, gradient = found(logits, labels, method="histogram", bins=2**14)
    window = AccumulationWindow()
    for share in (slice(0, 1), slice(1, 4)):
        with torch.no_grad():
            lovasz_softmax(logits[share], labels[share], window=window)
    window.freeze()
    parts = [
        found(logits[share], labels[share], window=window) for share in (slice(0, 1), slice(1, 4))
    ]
    assert all(value == expected for value, _ in parts)
    assert torch.equal(torch.cat([part for _, part in parts]), 2 * gradient)


@interpreted
@pytest.mark.parametrize("case", ["untrained", "good", "rare class"])
def test_auto_is_as_good_as_a_float32_sort(
    device, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise of ``test_auto.py``, kept without anything that the host decides."""
    monkeypatch.setattr(device, "TILE", 2**18)  # few and large steps of the interpreter
    monkeypatch.setattr(device, "RECOUNTED", 2**17)
    from lovasz_repro.bench.yardsticks import sort_loop_softmax
    from tests.losses import test_auto

    shares, scale, margin, wrong = test_auto.CASES[case]
    labels = test_auto.labels_of(shares)
    logits = test_auto.logits_of(labels, len(shares), scale, margin, wrong)
    exact = found(logits.double(), labels, method="sort")
    loop = test_auto.errors_of(sort_loop_softmax, logits, labels, exact)
    auto = test_auto.errors_of(lovasz_softmax, logits, labels, exact)
    assert auto[0] <= max(loop[0], 2 * torch.finfo(torch.float32).eps)
    assert auto[1] <= max(loop[1], 1e-6)


@interpreted
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("options", [{}, {"per_image": True, "ignore_index": 1}], ids=str)
def test_compiled_without_a_graph_break(device, options: dict) -> None:
    def step(logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * lovasz_softmax(logits * 1.5, labels, **options)

    logits, labels = batch(2, 9, 11)
    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, labels)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)
    torch._dynamo.reset()


@interpreted
def test_operators_are_what_they_say(device) -> None:
    logits, labels = batch(2, 40)
    for parts in (0, 128):
        plan = (None, True, 2, 64, parts)
        # What nobody looks up is not set, so outputs are not compared.
        check = functools.partial(
            torch.library.opcheck, test_utils=("test_schema", "test_faketensor")
        )
        check(device.forward_operator, (logits, labels, None, *plan))
        _, *gains = device.forward(logits, labels, None, *plan)
        ones = torch.ones(())
        check(device.gradient_operator, (logits, labels, *gains, ones, *plan))


class Launches(TorchDispatchMode):
    """Names of what would be launched: kernels, and operations but those of shape and memory."""

    FREE = (
        "device",
        "empty",
        "new_empty",
        "view",
        "split",
        "reshape",
        "slice",
        "detach",
        "alias",
        "select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if not name.startswith(self.FREE):
            self.names.append(name)
        return function(*args, **kwargs or {})


@pytest.fixture
def launches(device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Fake tensors, whose numbers nobody can read, and kernels that do not run."""
    with FakeTensorMode(), Launches() as mode:
        monkeypatch.setattr(
            device, "_launch", lambda kernel, *rest: mode.names.append(kernel.__name__)
        )
        yield mode


@pytest.mark.skipif(IN_INTERPRETER, reason="needs no interpreter")
@pytest.mark.parametrize("options", [*OPTIONS, {"per_image": True, "bins": 100}], ids=str)
@pytest.mark.parametrize("method", ["histogram", "auto"])
@pytest.mark.parametrize("labels", [torch.int64, torch.uint8], ids=str)
def test_launches_are_few_and_the_host_never_waits(
    device, launches: Launches, options: dict, method: str, labels: torch.dtype
) -> None:
    device._factors.cache_clear()
    logits = torch.empty(4, 6, 30, 40, device="cpu")
    truth = torch.empty(4, 30, 40, dtype=labels, device="cpu")
    with torch.no_grad():
        for _ in range(2):  # weights of classes are copied to the device once
            launches.names.clear()
            loss = lovasz_softmax(logits, truth, method=method, **options)
        assert (loss.shape, loss.device.type, loss.dtype) == ((), "cpu", torch.float32)
        plan = device.Plan(None, True, 1, 64, 128 if method == "auto" else 0)
        flat = (logits.flatten(2), truth.flatten(1))
        _, *gains = device.forward_operator(*flat, None, *plan)
        gradient = device.gradient_of(*flat, *gains, loss, *plan)
    assert gradient.shape == (4, 6, 1200)
    counted = [name for name in launches.names if "softmax_forward" not in name]
    assert counted[0] == "zeros"
    passes = ["count_kernel", "scan_kernel", "recount_kernel", "rescan_kernel"]
    passes = passes if method == "auto" else passes[:2]
    assert counted[1:] == [*passes, "gradient_kernel"]
    assert len(counted) <= 6


@pytest.mark.skipif(IN_INTERPRETER, reason="needs no interpreter")
def test_fake_tensors_notice_who_waits(launches: Launches) -> None:
    logits = torch.empty(2, 6, 30, device="cpu")
    labels = torch.empty(2, 30, dtype=torch.int64, device="cpu")
    with torch.no_grad(), pytest.raises(DynamicOutputShapeException):
        lovasz_softmax(logits, labels, method="sort")


def test_problems_that_stay_with_plain_pytorch(device, monkeypatch: pytest.MonkeyPatch) -> None:
    from lovasz_repro.losses import JaccardLoss

    monkeypatch.undo()
    monkeypatch.setattr(backends, "DEVICES", ("cpu",))
    monkeypatch.setattr(backends, "_tried_kernels", lambda _: device)
    logits = torch.zeros(1, 2, 3)
    problem = (logits, "auto", JaccardLoss(), False, False)
    assert backends.device_kernels(*problem) is device
    for at, other in enumerate((logits.double(), "sort", HammingLoss(), True, True)):
        changed = (*problem[:at], other, *problem[at + 1 :])
        assert backends.device_kernels(*changed) is None
    assert backends.device_kernels(torch.zeros(1, device.MOST_CLASSES + 1, 1), *problem[1:]) is None


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lovasz_repro.losses import device_kernels as kernels

TYPES = dict.fromkeys(("ignore_index", "image_stride", "class_stride", "pixel_stride"), "i64")
TYPES |= dict.fromkeys(("images", "space"), "i32") | dict.fromkeys(("slots", "splits"), "*i32")
WHOLE = ("labels", "sums", "counts", "sizes", "alarms", "ended", "places")
TYPES |= dict.fromkeys(WHOLE, "*i64") | dict.fromkeys(("values", "factors"), "*fp64")
CONSTANTS = {"classes": 21, "rows": 2, "bins": 2**14, "fraction_bits": 9, "parts": 2**15,
             "has_ignored": True, "only_present": True, "has_factors": True, "class_block": 32,
             "pixel_block": 128, "value_block": 64, "block": 1024}
for name in ("count", "scan", "recount", "rescan", "gradient"):
    kernel = getattr(kernels, f"{name}_kernel")
    for logits in ("*fp32", "*bf16") if name in ("count", "gradient") else ("*fp32",):
        types = TYPES | {"logits": logits, "result": logits}
        signature = {one.name: "constexpr" if one.is_constexpr else types.get(one.name, "*fp32")
                     for one in kernel.params}
        constants = {one.name: CONSTANTS[one.name] for one in kernel.params if one.is_constexpr}
        for architecture in (80, 90):
            source = ASTSource(kernel, signature, constants)
            target = GPUTarget("cuda", architecture, 32)
            built = compile(source, target=target, options={"num_warps": 8})
            print(name, logits, architecture, len(built.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(IN_INTERPRETER, reason="needs the compiler")
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """To machine code for A100 and H100, by the assembler that Triton brings."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 14
    assert min(sizes) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"ignore_index": 3}], ids=str)
@pytest.mark.parametrize("method", ["histogram", "auto"])
def test_on_a_gpu(options: dict, method: str) -> None:
    logits, labels = batch(4, 200, 300, classes=19, used=19, scale=3.0)
    value, gradient = found(logits.cuda(), labels.cuda(), method=method, **options)
    assert backends._tried_kernels(torch.device("cuda", 0)) is not None
    exact, expected = found(logits.double(), labels, method="sort", **options)
    assert value.item() == pytest.approx(exact.item(), abs=2e-7)
    assert (gradient.cpu() - expected).norm() <= 1e-3 * expected.norm()
    graph, static = torch.cuda.CUDAGraph(), logits.cuda().requires_grad_()
    with torch.cuda.graph(graph):
        loss = lovasz_softmax(static, labels.cuda(), method=method, **options)
        (captured,) = torch.autograd.grad(loss, static)
    graph.replay()
    assert loss.item() == value.item()
    assert torch.equal(captured, gradient)
