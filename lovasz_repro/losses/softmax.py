"""Lovász-Softmax as a step of autograd: counts or a sort, gains, loss, and the gradient."""

from typing import Any

import torch
from torch import Tensor

from .averaging import Problem
from .backends import backend_for
from .inputs import PixelWeights
from .window import AccumulationWindow


class LovaszSoftmaxFunction(torch.autograd.Function):
    """Logits (B, C, P) to the loss of the batch of all ranks.

    With one row an image, to this rank's part of it. ``plain.py`` says what the steps are.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, logits: Tensor, problem: Problem, window: AccumulationWindow | None
    ) -> Tensor:
        backend, dtype = (
            backend_for(logits, problem),
            torch.promote_types(logits.dtype, torch.float32),
        )
        flat, kept = backend.count(logits, problem)
        flat = problem.row_ranks.sum_(flat)
        if window is not None:
            flat = window.with_counts(flat)
        sums = flat[:-1].view(problem.tally_shape(logits))
        tables, values, coarse = backend.tables(sums, problem, dtype)
        items = problem.classes_to_sort(coarse)
        slots = torch.full((logits.shape[1],), -1, device=logits.device)
        slots[items] = torch.arange(len(items), device=logits.device)
        exact = tables.new_empty(0, *problem.labels.shape)
        loss = values[slots < 0].sum()
        if items:
            exact, part = backend.exact_gains(logits, problem, kept, items)
            loss = loss + problem.row_ranks.sum_(part)
        loss = loss + torch.where(flat[-1] > 0, torch.nan, 0.0)
        if window is not None:
            window.include(problem.rows.counts[0], flat)
        # Saved, not kept on ctx: autograd then notices what is changed in place before the
        # backward pass, and lets go of everything behind it.
        weights = problem.weights or (None, None)
        ctx.save_for_backward(
            logits, problem.labels, problem.valid, *weights, kept, tables, exact, slots
        )
        ctx.backend = backend
        ctx.rest = problem[3:]
        return loss.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lovasz_softmax can be differentiated once: no backward with create_graph=True"
            )
        logits, labels, valid, background, foreground, *rest = ctx.saved_tensors
        weights = None if foreground is None else PixelWeights(background, foreground)
        problem = Problem(labels, valid, weights, *ctx.rest)
        return ctx.backend.gradient(logits, problem, *rest, grad_loss), None, None
