"""How fast a run trains: images per second, loading included, validation and checkpoints not."""

import time

SPEED = "train/images_per_second"  # the metric of a run


class StepRate:
    """Times steps from `begin` to `end`; the first is left out, it starts loaders and kernels."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0
        self._first = True
        self.begin()

    def begin(self) -> None:
        """The work of a step begins, loading of its batch included."""
        self._began = time.perf_counter()

    def end(self, images: int) -> None:
        """A step over ``images`` images is done."""
        if not self._first:
            self._images += images
            self._seconds += time.perf_counter() - self._began
        self._first = False

    def take(self) -> dict[str, float]:
        """`SPEED` since the last call; nothing where no step was timed."""
        images, seconds, self._images, self._seconds = self._images, self._seconds, 0, 0.0
        return {SPEED: images / seconds} if seconds else {}
