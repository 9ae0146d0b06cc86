"""The Triton kernels against the plain passes, in Triton's interpreter: no GPU, no compiler.

It runs in a process of its own, since Triton decides at its import how it runs kernels.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lovasz_repro.losses import backends, lovasz_softmax

SCRIPT = """
import torch
from lovasz_repro.losses import JaccardLoss, backends, plain, triton_passes as kernels
from lovasz_repro.losses.averaging import Problem, Rows
from lovasz_repro.losses.error_bins import ProbabilityBins
from lovasz_repro.losses.histogram import Method
from lovasz_repro.losses.ranks import ONE_PROCESS

print(backends.disagreement(kernels, torch.device("cpu")))
ones = torch.ones(3, 7, dtype=torch.float64)
rest = (JaccardLoss(), ONE_PROCESS, Method("histogram"), ProbabilityBins(256))
for dtype in (torch.float32, torch.bfloat16):
    generator = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(3, 130, 7, generator=generator)).to(dtype).transpose(1, 2)
    labels = torch.randint(0, 7, (3, 130), generator=generator)
    logits[0, 2, 5] = float("nan")  # a NaN pixel, and one that is ignored
    logits[1, 0, 9] = float("nan")
    logits[2, :, 20] = torch.tensor([30.0] + [-30.0] * 6)  # sure, right or wrong
    valid = torch.rand(3, 130, generator=generator) < 0.8
    valid[0, 5], valid[1, 9] = True, False
    labels.masked_fill_(~valid, 0)
    for mask in (valid, None):
        clean = logits if mask is not None else logits.nan_to_num(nan=1.0)
        problem = Problem(labels, mask, None, Rows(ones.long(), ones), *rest)
        a, kept = plain.count(clean, problem)
        b, found = kernels.count(clean, problem)
        assert a[-1] == b[-1] == (mask is not None)
        counts, others = (t[:-1].view(2, 7, 3, 257) // problem.bins.one_pixel for t in (a, b))
        assert torch.equal(counts.sum(-1), others.sum(-1))
        # float64 and float32 differ on the edges of bins
        assert (counts - others).abs().sum() <= 0.01 * counts.sum()
        tables = torch.rand(2, 7, 3, 257, generator=generator)
        tables[..., 1:] = tables[..., :1]  # the bin of a pixel on an edge does not matter
        exact, slots = torch.rand(1, 3, 130, generator=generator), torch.full((7,), -1)
        for given in (exact[:0], exact):
            slots[4] = len(given) - 1
            args = (tables, given, slots, torch.ones(()))
            one = plain.gradient(clean, problem, kept, *args)
            other = kernels.gradient(clean, problem, found, *args)
            assert one.dtype == other.dtype == dtype
            near = 1e-5 if dtype == torch.float32 else 1e-2  # the interpreter rounds down
            torch.testing.assert_close(one, other, rtol=near, atol=1e-6, equal_nan=True)
print("agree")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_agree_with_the_plain_passes() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    difference, verdict = done.stdout.split()
    assert float(difference) < 1e-4
    assert verdict == "agree"


def test_the_cpu_and_float64_have_no_kernels() -> None:
    assert backends.cuda_kernels(torch.zeros(1, 2, 3)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"ignore_index": 3}], ids=str)
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    logits = (3 * torch.randn(4, 19, 200, 300)).cuda()
    labels = torch.randint(0, 19, (4, 200, 300)).cuda()
    results = []
    for wanted in ("1", "0"):
        monkeypatch.setenv("LOVASZ_REPRO_KERNELS", wanted)
        leaf = logits.clone().requires_grad_()
        value = lovasz_softmax(leaf, labels, method="histogram", **options)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert backends.cuda_kernels(logits) is None  # switched off
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert ((results[0][1] - results[1][1]).norm() / results[1][1].norm()).item() < 1e-4


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from lovasz_repro.losses import triton_passes as kernels

NUMBERS = {"space": "i32", "pixels": "i64"}
NUMBERS |= {f"{name}_stride": "i64" for name in ("image", "class", "pixel")}
WHOLE = {"labels": "*i64", "valid": "*i1", "slots": "*i64"}
CONSTANTS = {"classes": 21, "rows": 2, "bins": 2**14, "class_block": 32, "pixel_block": 128}
CONSTANTS |= {"fraction_bits": 10, "one_pixel": 2**36, "has_valid": True, "has_exact": True}
for kernel in (kernels.count_kernel, kernels.gradient_kernel):
    for logits in ("*fp32", "*bf16"):
        types = NUMBERS | WHOLE | {"logits": logits, "result": logits, "sums": "*i64"}
        signature, constants = {}, {}
        for parameter in kernel.params:
            if parameter.is_constexpr:
                constants[parameter.name] = CONSTANTS[parameter.name]
            signature[parameter.name] = (
                "constexpr" if parameter.is_constexpr else types.get(parameter.name, "*fp32")
            )
        for architecture in (80, 90):
            source = ASTSource(kernel, signature, constants)
            built = compile(source, target=GPUTarget("cuda", architecture, 32))
            print(len(built.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """To machine code for A100 and H100, by the assembler that Triton brings."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.splitlines()]
    assert len(sizes) == 8
    assert min(sizes) > 1000
