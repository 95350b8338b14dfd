"""Phases of a run: the steps of one are alike; between them pictures may grow, and mixing may end."""

from dataclasses import dataclass, replace

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan
from jeffnet.data.augment.policies import policy_magnitude, with_magnitude
from jeffnet.train.config import Config


@dataclass(frozen=True)
class Phase:
    """Epochs whose steps are alike.

    Attributes:
      first_epoch: counted from 0.
      config: the run's, with the values of this phase.
      image_size: of the training pictures.
    """

    first_epoch: int
    config: Config
    image_size: int

    @property
    def description(self) -> str:
        """What may differ between phases, for a person to read."""
        augment, drop_rate = self.config.augment, self.config.model.drop_rate
        parts = [f"{self.image_size} px", f"mixup {augment.mixup:g}", f"cutmix {augment.cutmix:g}", augment.policy]
        parts.append(None if drop_rate is None else f"dropout {drop_rate:g}")
        return ", ".join(filter(None, parts))


def make_phases(config: Config, preprocessing: Preprocessing) -> list[Phase]:
    """The phases of a run, in order; the first begins with epoch 0, and the last has this preprocessing's size.

    Source of the growth: Tan and Le, "EfficientNetV2", arXiv:2104.00298, section 4.2.
    """
    starts = {epoch for epoch in (0, config.augment.mix_off_epoch) if epoch is not None and epoch < config.epochs}
    stages = config.progressive.stages
    borders = [stage * config.epochs // stages for stage in range(stages)]
    image_size = preprocessing.train_size or preprocessing.image_size
    phases = []
    for epoch in sorted(starts | set(borders)):
        stage = sum(border <= epoch for border in borders) - 1
        share = stage / (stages - 1) if stages > 1 else 1.0
        phases.append(Phase(epoch, *_values(config, epoch, share, image_size)))
    return phases


def _values(config: Config, epoch: int, share: float, image_size: int) -> tuple[Config, int]:
    """Configuration and image size a share of the way from the first phase to the last."""
    first, augment, model = config.progressive, config.augment, config.model

    def between(start: float | None, end: float) -> float:
        return end if start is None else start + share * (end - start)

    if augment.mix_off_epoch is not None and epoch >= augment.mix_off_epoch:
        augment = replace(augment, mixup=0.0, cutmix=0.0)
    elif augment.mixup:
        augment = replace(augment, mixup=between(first.mixup, augment.mixup))
    if share < 1:
        magnitude = policy_magnitude(augment.policy) if augment.policy else None
        if first.magnitude is not None and augment.policy and magnitude is not None:
            augment = replace(augment, policy=with_magnitude(augment.policy, between(first.magnitude, magnitude)))
        if first.drop_rate is not None:
            final = model_plan(model.known_architecture, drop_rate=model.drop_rate).drop_rate
            model = replace(model, drop_rate=between(first.drop_rate, final))
        image_size = round(between(first.image_size, image_size))
    return replace(config, augment=augment, model=model), image_size
