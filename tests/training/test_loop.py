"""The loop on a toy network, step by step against plain torch."""

import signal
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lovasz_repro.config.schema import TrainingConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.processes import Interrupted, StopRequest
from lovasz_repro.training.loop import TrainingState, learning_rate, train

CPU = torch.device("cpu")


def config(**changes: object) -> TrainingConfig:
    values: dict[str, object] = {
        "iterations": 6, "batch_size": 2, "lr": 0.01, "validate_every": 2, "checkpoint_every": 3,
    }  # fmt: skip
    return TrainingConfig.model_validate(values | changes)


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout2d(0.5))
    return nn.Sequential(*layers, nn.Conv2d(4, 5, 1))


def batches(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8),
            torch.randint(0, 5, (2, 8, 8), generator=generator, dtype=torch.uint8),
        )
        for _ in range(count)
    ]


class Recorder:
    """What the loop reports."""

    def __init__(self, scores: list[float] | None = None) -> None:
        self.scores = iter(scores or [0.1] * 20)
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.saved: list[int] = []
        self.stop = 0

    def run(self, state: TrainingState, settings: TrainingConfig, start: int = 0) -> None:
        train(
            state,
            batches()[start : settings.iterations],
            F.cross_entropy,
            settings,
            CPU,
            validate=lambda: {"val/dataset_miou": next(self.scores)},
            log=lambda iteration, values: self.logged.append((iteration, values)),
            save=lambda state: self.saved.append(state.iteration),
            stop_asked=lambda: self.stop,
        )


def new_state() -> TrainingState:
    model = network()
    return TrainingState(model, torch.optim.Adam(model.parameters(), lr=1.0))


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(0, 2.5e-4), (10_000, 2.5e-4 * 0.5**0.9), (19_999, 2.5e-4 * (1 / 20_000) ** 0.9), (20_000, 0)],
)
def test_values_of_the_paper_s_schedule(iteration: int, expected: float) -> None:
    rate = learning_rate(config(lr=2.5e-4, iterations=20_000), iteration)
    assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("iteration", "iterations", "expected"),
    [(0, 2118, 5e-4), (1058, 2118, 5e-4), (1059, 2118, 1e-4), (2117, 2118, 1e-4), (1, 3, 5e-4),
     (2, 3, 1e-4)],
)  # fmt: skip
def test_the_second_epoch_has_a_fifth_of_the_rate(
    iteration: int, iterations: int, expected: float
) -> None:
    steps = config(lr=5e-4, iterations=iterations, schedule="step")
    assert learning_rate(steps, iteration) == pytest.approx(expected, rel=1e-12)


def test_the_authors_lower_the_rate_at_step_1059_of_2118_counted_from_1() -> None:
    steps = config(lr=5e-4, iterations=2118, schedule="step-one-earlier")
    rates = [learning_rate(steps, iteration) for iteration in range(2118)]
    assert rates == [5e-4] * 1058 + [5e-4 / 5] * 1060


def test_the_loop_is_plain_adam_with_the_poly_schedule() -> None:
    reference = network()
    optimizer = torch.optim.Adam(reference.parameters())
    torch.manual_seed(3)
    losses = []
    for k, (images, labels) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - k / 6) ** 0.9
        loss = F.cross_entropy(reference(images.float() / 255), labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    state, recorder = new_state(), Recorder()
    torch.manual_seed(3)
    recorder.run(state, config())
    logged = [values["train/loss"] for _, values in recorder.logged if "train/loss" in values]
    assert logged == losses
    for ours, theirs in zip(state.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rhythm_of_validation_and_checkpoints() -> None:
    state, recorder = new_state(), Recorder()
    recorder.run(state, config(iterations=5, validate_every=2, checkpoint_every=3))
    validated = [step for step, values in recorder.logged if "val/dataset_miou" in values]
    assert validated == [0, 2, 4, 5]
    assert recorder.saved == [3, 5]


def test_the_best_snapshot_is_kept_and_the_starting_point_is_none() -> None:
    state, recorder = new_state(), Recorder([0.9, 0.3, 0.5, 0.4])
    recorder.run(state, config())
    assert (state.best_iteration, state.best_score) == (4, 0.5)
    final = state.model.state_dict()["0.weight"].clone()
    state.load_best()
    assert not torch.equal(state.model.state_dict()["0.weight"], final)


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_interrupted_and_resumed_is_bitwise_the_same(batch_norm: str) -> None:
    settings = config(batch_norm=batch_norm)
    whole = new_state()
    torch.manual_seed(3)
    Recorder().run(whole, settings)

    first, recorder = new_state(), Recorder()
    torch.manual_seed(3)
    recorder.stop = signal.SIGTERM  # asked for before the first step
    with pytest.raises(Interrupted) as caught:
        recorder.run(first, settings)
    assert caught.value.exit_code == 143
    assert recorder.saved == [1]
    kept = first.to_checkpoint()
    torch.manual_seed(99)  # another process, another random state

    second = new_state()
    second.restore(kept)
    Recorder().run(second, settings, start=1)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert second.best_iteration == whole.best_iteration


def test_frozen_statistics_do_not_move() -> None:
    state = new_state()
    Recorder().run(state, config(batch_norm="frozen"))
    assert state.model.state_dict()["1.running_mean"].abs().sum() == 0
    moved = new_state()
    Recorder().run(moved, config(batch_norm="train"))
    assert moved.model.state_dict()["1.running_mean"].abs().sum() > 0


def test_dropout_that_is_off_draws_nothing() -> None:
    curves = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        recorder, state = Recorder(), new_state()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        recorder.run(state, config(dropout="off"))
        assert torch.equal(torch.get_rng_state(), before)
        curves.append([v["train/loss"] for _, v in recorder.logged if "train/loss" in v])
    assert curves[0] == curves[1]
    plain = network()
    plain[2] = nn.Identity()
    reference = Recorder()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1.0)
    reference.run(TrainingState(plain, optimizer), config())
    assert curves[0] == [v["train/loss"] for _, v in reference.logged if "train/loss" in v]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_harms(poison: float) -> None:
    state, recorder = new_state(), Recorder()
    calls = iter(range(10))

    def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels) * (poison if next(calls) == 4 else 1.0)

    with pytest.raises(RunFailed, match=r"iteration 5.*last checkpoint is intact"):
        run_with(objective, state, recorder)
    assert recorder.saved == [3]
    assert all(torch.isfinite(value).all() for value in state.model.state_dict().values())


def run_with(
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    state: TrainingState,
    recorder: Recorder,
) -> None:
    train(
        state,
        batches(),
        objective,
        config(),
        CPU,
        validate=lambda: {"val/dataset_miou": 0.5},
        log=lambda iteration, values: None,
        save=lambda state: recorder.saved.append(state.iteration),
        stop_asked=lambda: recorder.stop,
    )


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    state, seen = new_state(), []

    def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return F.cross_entropy(logits, labels)

    train(
        state,
        batches(1),
        objective,
        config(iterations=1, precision="bfloat16", channels_last=True),
        CPU,
        validate=lambda: {"val/dataset_miou": 0.5},
        log=lambda iteration, values: None,
        save=lambda state: None,
        stop_asked=lambda: 0,
    )
    assert seen == [torch.float32]
    assert next(state.model.parameters()).dtype == torch.float32


def test_signals_are_noted_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# -- what only some experiments use -------------------------------------------------------------


def test_sgd_with_multipliers_and_a_step_is_plain_sgd() -> None:
    reference = network()
    slow, fast = [reference[0].weight, reference[0].bias], [reference[3].weight]
    optimizer = torch.optim.SGD([{"params": slow}, {"params": fast}], lr=1.0, momentum=0.9)
    torch.manual_seed(3)
    for k, (images, labels) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 0.1 * (0.01 if k < 3 else 0.002)
        optimizer.param_groups[1]["lr"] = 20 * (0.01 if k < 3 else 0.002)
        loss = F.cross_entropy(reference(images.float() / 255), labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model = network()
    groups = [
        {"params": [model[0].weight, model[0].bias], "lr_multiplier": 0.1},
        {"params": [model[3].weight], "lr_multiplier": 20.0},
    ]
    state = TrainingState(model, torch.optim.SGD(groups, lr=1.0, momentum=0.9))
    torch.manual_seed(3)
    Recorder().run(state, config(schedule="step", optimizer="sgd"))
    for ours, theirs in zip(state.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_last_snapshot_can_be_the_one_that_is_kept() -> None:
    state, recorder = new_state(), Recorder([0.9, 0.3, 0.5, 0.4])
    train(
        state,
        batches(),
        F.cross_entropy,
        config(),
        CPU,
        choose=None,
        validate=lambda: {"val/image_iou": next(recorder.scores)},
        log=lambda iteration, values: None,
        save=lambda state: None,
        stop_asked=lambda: 0,
    )
    assert state.best_iteration == 6
    assert torch.equal(state.best_weights["0.weight"], state.model.state_dict()["0.weight"])
