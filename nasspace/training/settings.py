"""Training settings and budgets: two frozen values, checked when they are created."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nasspace.errors import InputError, nearest

OPTIMIZERS = ("sgd", "rmsprop", "adamw")
SCHEDULES = ("cosine", "one-cycle", "exponential", "steps", "plateau")
WARM_UPS = ("share", "epochs")
DECAYED = ("weights", "weights-but-depthwise", "all")
STATISTICS = ("re-estimated", "running")
SAMPLINGS = ("fair", "sandwich", "uniform")
POLICIES = ("randaugment", "trivialaugment")
BALANCES = ("weights", "sampling")
PRECISIONS = ("float32", "bfloat16", "float16")
ADDED = (  # later settings, which count in a fingerprint if they are not the defaults
    *("balance", "accumulation", "frozen_norms", "head_first"),
    *("teacher_share", "temperature", "precision"),
)
FINE_TUNING = ("frozen_norms", "head_first")  # settings of a training that has all of its weights
DISTILLATION = ("teacher_share", "temperature")  # settings of a training with a teacher
NEEDED = {  # settings with the other one, and its values, without which they change nothing
    "square_decay": ("optimizer", ("rmsprop",)),
    "epsilon": ("optimizer", ("rmsprop",)),
    "momentum": ("optimizer", ("sgd", "rmsprop")),
    "nesterov": ("optimizer", ("sgd",)),
    "factor": ("schedule", ("exponential", "steps", "plateau")),
    "every": ("schedule", ("exponential",)),
    "milestones": ("schedule", ("steps",)),
    "patience": ("schedule", ("plateau",)),
    "policy_layers": ("policy", ("randaugment",)),
    "policy_magnitude": ("policy", ("randaugment",)),
}
FORMER_NAMES = {"optimiser": "optimizer"}  # settings under the name that files of earlier versions give them


@dataclass(frozen=True)
class Fidelity:
    """A training budget: square resolution in pixels, passes over the data, share of each class's images."""

    resolution: int
    epochs: int
    share: float = 1.0

    def __post_init__(self) -> None:
        _check(self.resolution >= 1, "fidelity.resolution", self.resolution, "a number of pixels above 0")
        _check(self.epochs >= 1, "fidelity.epochs", self.epochs, "1 or more")
        _check(0 < self.share <= 1, "fidelity.share", self.share, "above 0 and at most 1")


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(holds: bool, place: str, value: object, allowed: str) -> None:
    """Raise an `InputError` that names the setting unless `holds`."""
    if not holds:
        raise InputError(f"{place}: {value!r} is not {allowed}")


def _whole(default: int, least: int, allowed: str, most: float = math.inf) -> Any:
    """A field for whole numbers from `least` to `most`."""
    rules = [(_is_whole, "a whole number"), (lambda value: least <= value <= most, allowed)]
    return field(default=default, metadata={"rules": rules})


def _number(default: float | None, allowed: str, holds: Callable[[float], bool]) -> Any:
    """A field for numbers that satisfy `holds`; None too if it is the default."""
    rules = [(lambda value: (default is None and value is None) or (_is_number(value) and holds(value)), allowed)]
    return field(default=default, metadata={"rules": rules})


def _range(default: tuple[float, float] | None, allowed: str, holds: Callable[[float, float], bool]) -> Any:
    """A field for pairs of numbers, the lower one first, that satisfy `holds`; None too if it is the default."""

    def fits(value: object) -> bool:
        if value is None:
            return default is None
        return _are_numbers(value, 2) and value[0] <= value[1] and holds(*value)

    return field(default=default, metadata={"rules": [(fits, allowed)]})


def _are_numbers(value: object, count: int) -> bool:
    """Whether a value is a list of `count` numbers."""
    return isinstance(value, list | tuple) and len(value) == count and all(map(_is_number, value))


def _jitter() -> Any:
    """The field for the strengths of color jitter."""

    def fits(value: Any) -> bool:
        return _are_numbers(value, 4) and all(part >= 0 for part in value) and value[3] <= 0.5

    allowed = "four numbers of 0 or more (brightness, contrast, saturation, hue), hue at most 0.5"
    return field(default=(0.0, 0.0, 0.0, 0.0), metadata={"rules": [(fits, allowed)]})


def _one_of(default: Any, options: tuple, allowed: str = "") -> Any:
    """A field for one of some options."""
    words = allowed or f"{', '.join(options[:-1])} or {options[-1]}"
    return field(default=default, metadata={"rules": [(lambda value: value in options, words)]})


def _check_fields(settings: Any, place: str) -> None:
    """Check each field by its own rules; the message names it below `place`."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        for holds, allowed in setting.metadata.get("rules", ()):
            _check(holds(value), f"{place}.{setting.name}", value, allowed)


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings as a file has them, former names replaced by the current ones."""
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        name = FORMER_NAMES.get(key, key)
        if name in renamed:
            former = next(old for old, current in FORMER_NAMES.items() if current == name)
            raise InputError(f"training.{name}: also given under its former name '{former}'; remove one of them")
        renamed[name] = value
    return renamed


@dataclass(frozen=True)
class Sharing:
    """How weights that all networks of a space share are trained (`nasspace.training.supernet`).

    `sampling` chooses `networks` networks for each batch, whose gradients are averaged: with `fair` options of a choice
    are taken equally often (FairNAS averages over as many networks as a choice has options); with `uniform` at random;
    with `sandwich` also at random, and the largest and the smallest are added. `rate_ratio` is the exponent of the
    learning rate's decay for the smallest network, and its reciprocal that for the largest (1: the same rate for all).
    `momenta` is the number of groups by FLOPs with a momentum of their own (1: the same for all).
    """

    sampling: str = _one_of("sandwich", SAMPLINGS)
    networks: int = _whole(1, 1, "from 1 to 64", 64)
    rate_ratio: float = _number(1.0, "from 1 to 100", lambda value: 1 <= value <= 100)
    momenta: int = _whole(1, 1, "from 1 to 16", 16)

    def __post_init__(self) -> None:
        _check_fields(self, "supernet")


@dataclass(frozen=True)
class SupernetSettings(Sharing):
    """A training of shared weights: how, its passes over the training images, resolution in pixels, learning rate.

    None is the resolution of the search's fidelity, and the learning rate of the training settings.
    """

    epochs: int = _whole(100, 1, "from 1 to 100,000", 100_000)
    resolution: int | None = None
    learning_rate: float | None = _number(None, "a number above 0, or null", lambda value: value > 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.resolution is None or (_is_whole(self.resolution) and 8 <= self.resolution <= 8192)
        _check(fits, "supernet.resolution", self.resolution, "a number of pixels from 8 to 8192")


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; the defaults are for short trainings of small networks.

    **Learning rate.** `learning_rate` is the peak. The rate rises linearly during `warm_up`, a share of all steps or,
    with `warm_up_in: epochs`, a number of epochs. Then it falls to `last_rate` by a half cosine (`cosine`) or linearly
    (`one-cycle`), or is multiplied by `factor` after every `every` epochs (`exponential`, TensorFlow's staircase), at
    the epochs in `milestones` (`steps`), or after `patience` epochs without a better accuracy on the validation split
    (`plateau`; the reported validation accuracy is then of images that influenced the training), but not below
    `last_rate`. Epochs are counted from the start of the training, warm-up included.

    **Optimizer.** `sgd` uses `momentum`, with Nesterov's method unless `nesterov` is false. `rmsprop` is TensorFlow's:
    `square_decay` for the mean square, which starts at 1, `momentum`, and `epsilon` inside the root. `adamw` uses
    PyTorch's constants. `weight_decay` acts on the parameters named by `decayed`: `weights` excludes biases and norms,
    `weights-but-depthwise` also depthwise convolutions, `all` nothing. `gradient_norm` is the largest norm of the
    gradient of a step (0: unlimited).

    **Result.** `average` is the decay of an exponential moving average of the weights, which becomes the result (0:
    none); the decay is smaller at the start, (1 + n) / (10 + n) after n steps, as in TensorFlow. `norm_momentum` is the
    momentum of every batch norm (PyTorch's, that is 1 - TensorFlow's decay; None: unchanged). The final batch norm
    statistics are `re-estimated` on training images or the `running` ones.

    **Uneven classes.** `balance` gives every class the same weight: `weights` in the loss, `sampling` by drawing images
    of rare classes more often; None: as the images are. **Memory.** A batch is processed in `accumulation` parts, whose
    gradients are added. **Speed.** `precision` is that of forward and backward; weights, validation and export stay in
    float32. `float16` is for CUDA only. **Fine-tuning** of given weights: `frozen_norms` keeps statistics and weights
    of batch norms; in the share `head_first` of the steps only the last layer is trained. **Distillation.** With a
    teacher, `teacher_share` is its part in the loss, and `temperature` divides both networks' logits.

    **Images.** `crop_padding` is the largest random shift as a share of the side. `flip` flips images horizontally;
    None does so for color images only, since drawings and writing seldom keep their meaning. `threads` are torch's, on
    the CPU. The following are off by default (`data/augmentation.py`, `data/policies.py`) and applied in this order.
    `crop_scale` is the range of a random box's area as a share of the image's, `crop_ratio` the range of its width over
    its height; the box is resized to the whole image and replaces the shift. `policy` is `randaugment`, with
    `policy_layers` operations of `policy_magnitude` (0 to 30) per image, or `trivialaugment`. `jitter` is the largest
    change of brightness, contrast, saturation (factors of 1 - value to 1 + value) and hue (a share of the color
    circle). `rotation` is in degrees in each direction, `color_noise` the standard deviation of AlexNet's noise along
    the principal components of the colors, `erasing` the share of images in which a random box gets the mean color.
    `mixup` and `cutmix` are parameters of the Beta distribution; if both are on, each batch has one of them by chance.

    An invalid value raises `InputError`, which names the setting.
    """

    batch_size: int = _whole(64, 2, "2 or more, for batch norm")
    learning_rate: float = _number(0.2, "a number above 0", lambda value: value > 0)
    optimizer: str = _one_of("sgd", OPTIMIZERS)
    weight_decay: float = _number(5e-4, "0 or more", lambda value: value >= 0)
    label_smoothing: float = _number(0.1, "from 0 to below 1", lambda value: 0 <= value < 1)
    warm_up: float = _number(0.2, "0 or more", lambda value: value >= 0)
    schedule: str = _one_of("cosine", SCHEDULES)
    crop_padding: float = _number(0.0625, "a share of the side, from 0 to below 1", lambda value: 0 <= value < 1)
    flip: bool | None = _one_of(None, (True, False, None), "true, false or null")
    gradient_norm: float = _number(1.0, "0 or more", lambda value: value >= 0)
    evaluation_batch_size: int = _whole(256, 1, "above 0")
    threads: int = _whole(1, 1, "1 or more")
    momentum: float = _number(0.9, "from 0 to below 1", lambda value: 0 <= value < 1)
    nesterov: bool = _one_of(True, (True, False), "true or false")
    square_decay: float = _number(0.9, "from 0 to below 1", lambda value: 0 <= value < 1)
    epsilon: float = _number(1e-3, "a number above 0", lambda value: value > 0)
    decayed: str = _one_of("weights", DECAYED)
    warm_up_in: str = _one_of("share", WARM_UPS)
    last_rate: float = _number(0.0, "0 or more", lambda value: value >= 0)
    factor: float = _number(0.1, "above 0 and at most 1", lambda value: 0 < value <= 1)
    every: float = _number(1.0, "a number of epochs above 0", lambda value: value > 0)
    milestones: tuple[float, ...] = ()
    patience: int = _whole(5, 1, "1 or more epochs")
    average: float = _number(0.0, "from 0 to below 1", lambda value: 0 <= value < 1)
    norm_momentum: float | None = _number(None, "above 0 and at most 1, or null", lambda value: 0 < value <= 1)
    norm_statistics: str = _one_of("re-estimated", STATISTICS)
    crop_scale: tuple[float, float] | None = _range(
        None, "a range of shares of the area, above 0 and at most 1", lambda low, high: low > 0 and high <= 1
    )
    crop_ratio: tuple[float, float] = _range((3 / 4, 4 / 3), "a range of ratios above 0", lambda low, _: low > 0)
    policy: str | None = _one_of(None, (*POLICIES, None), "randaugment, trivialaugment or null")
    policy_layers: int = _whole(2, 1, "1 or more operations")
    policy_magnitude: float = _number(9.0, "from 0 to 30", lambda value: 0 <= value <= 30)
    jitter: tuple[float, float, float, float] = _jitter()
    rotation: float = _number(0.0, "from 0 to 180 degrees", lambda value: 0 <= value <= 180)
    color_noise: float = _number(0.0, "0 or more", lambda value: value >= 0)
    erasing: float = _number(0.0, "a share of the images, from 0 to 1", lambda value: 0 <= value <= 1)
    mixup: float = _number(0.0, "0 or more", lambda value: value >= 0)
    cutmix: float = _number(0.0, "0 or more", lambda value: value >= 0)
    balance: str | None = _one_of(None, (*BALANCES, None), "weights, sampling or null")
    accumulation: int = _whole(1, 1, "1 or more")
    frozen_norms: bool = _one_of(False, (True, False), "true or false")
    head_first: float = _number(0.0, "a share of the steps, from 0 to below 1", lambda value: 0 <= value < 1)
    teacher_share: float = _number(0.5, "from 0 to 1", lambda value: 0 <= value <= 1)
    temperature: float = _number(4.0, "a number above 0", lambda value: value > 0)
    precision: str = _one_of("float32", PRECISIONS)

    def __post_init__(self) -> None:
        _check_fields(self, "training")
        share = self.warm_up_in == "share"
        _check(self.warm_up < 1 or not share, "training.warm_up", self.warm_up, "a share of the steps, below 1")
        _check(self.last_rate <= self.learning_rate, "training.last_rate", self.last_rate, "at most the learning rate")
        self._check_milestones()
        for name in ("crop_scale", "crop_ratio", "jitter"):  # a list comes from YAML
            value = getattr(self, name)
            object.__setattr__(self, name, value and tuple(map(float, value)))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Settings from a recipe's `training`; an unknown key raises `InputError` with the nearest known one."""
        known = [setting.name for setting in fields(cls)]
        values = with_current_names(values)
        for key in values:
            if key not in known:
                raise InputError(f"training: '{key}' is not a setting{nearest(key, known)}")
        return cls(**values)

    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal settings, in every version: former names count, not current ones."""
        former = {name: old for old, name in FORMER_NAMES.items()}
        added = {each.name for each in fields(self) if each.name in ADDED and getattr(self, each.name) == each.default}
        values = {name: value for name, value in asdict(self).items() if name not in added}
        content = sorted((former.get(name, name), value) for name, value in values.items())
        return hashlib.sha256(repr(content).encode()).hexdigest()[:12]

    def changed(self, names: Collection[str]) -> list[str]:
        """Those of some settings that are not the defaults."""
        return [each.name for each in fields(self) if each.name in names and getattr(self, each.name) != each.default]

    def without_effect(self, has_teacher: bool = False) -> list[str]:
        """A line on each setting that is not the default and changes nothing in a training with or without a teacher.

        >>> TrainingSettings(patience=3).without_effect()
        ["training.patience: without effect, since schedule is 'cosine'; it is for plateau"]
        """
        lines = []
        for name in self.changed(NEEDED):
            other, values = NEEDED[name]
            if (value := getattr(self, other)) not in values:
                lines.append(
                    f"training.{name}: without effect, since {other} is {value!r}; it is for {', '.join(values)}"
                )
        if self.crop_scale is None and self.changed(["crop_ratio"]):
            lines.append("training.crop_ratio: without effect, since there is no crop_scale")
        for name in [] if has_teacher else self.changed(DISTILLATION):
            lines.append(f"training.{name}: without effect, since there is no teacher; give --teacher")
        return lines

    def _check_milestones(self) -> None:
        """Check the epochs of the schedule `steps`."""
        epochs = self.milestones
        fit = isinstance(epochs, list | tuple) and all(_is_number(epoch) and epoch > 0 for epoch in epochs)
        _check(fit and sorted(set(epochs)) == list(epochs), "training.milestones", epochs, "a rising list of epochs")
        needed = self.schedule == "steps" and not epochs
        _check(not needed, "training.milestones", epochs, "enough for 'steps'; name the epochs at which the rate drops")
        object.__setattr__(self, "milestones", tuple(epochs))  # a list comes from YAML


def check_for_sharing(settings: TrainingSettings) -> None:
    """Refuse training settings that need a single network, with which weights cannot be shared."""
    if settings.average:
        raise InputError("training.average: shared weights have no moving average; set it to 0")
    if settings.schedule == "plateau":
        raise InputError("training.schedule: 'plateau' needs the accuracy of one network; choose another schedule")
    for name, usual in (("accumulation", 1), ("frozen_norms", False), ("head_first", 0), ("precision", "float32")):
        if getattr(settings, name) != usual:
            raise InputError(f"training.{name}: is for a single network, not for shared weights; leave it out")
    if settings.balance == "weights":
        raise InputError("training.balance: shared weights are trained with 'sampling'; choose it, or null")
