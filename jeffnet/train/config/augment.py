"""Configuration of what is done to training pictures."""

from jeffnet.data.augment.policies import parse_policy
from jeffnet.errors import ConfigError
from jeffnet.train.config.entries import check_range, choice, part


@part("augment")
class AugmentConfig:
    """Augmentation. Entries down to `splits` apply to single pictures on the host, the others to batches on the device.

    Attributes:
      scale: range of the random crop's area, as shares of the picture's.
      ratio: range of the random crop's aspect ratio, width by height.
      interpolation: of the random crop: 'bicubic', 'bilinear' or 'random' (either); None takes the model's.
      hflip: probability of a horizontal flip; 0 where left and right differ in meaning.
      vflip: probability of a vertical flip.
      color_jitter: brightness, contrast and saturation vary by up to this share; 0 for none.
      policy: 'v0' or 'original' (AutoAugment), 'rand-m9-mstd0.5-inc1' and the like (RandAugment), 'augmix-m3-w3',
        'trivial' (TrivialAugment) or '3a' (3-Augment); None switches it off. See `jeffnet.data.augment`.
      repeats: how often a picture is in a batch, augmented differently (arXiv:1901.09335); epochs keep their length.
      splits: views of a picture for the Jensen-Shannon loss, the first without `policy` and erasing; 1 for none.
      erase_prob: probability that rectangles of a picture are erased (arXiv:1708.04896).
      erase_mode: content of erased rectangles: 'const' (the mean colour), 'rand' (one random colour), 'pixel' (noise).
      erase_count: the most rectangles in a picture.
      mixup: alpha of mixup's Beta distribution (arXiv:1710.09412); 0 for none.
      cutmix: alpha of cutmix's Beta distribution (arXiv:1905.04899); 0 for none. With both, a batch gets one of them.
      mix_prob: probability that a batch is mixed.
      mix_switch_prob: probability of cutmix where mixup is on too.
      mix_mode: 'batch' draws one share for all pictures of a batch, 'elem' one for every picture.
      mix_off_epoch: epoch from which nothing is mixed; None mixes to the end.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    policy: str | None = None
    repeats: int = 1
    splits: int = 1
    erase_prob: float = 0.0
    erase_mode: str = choice(("const", "rand", "pixel"), "const")
    erase_count: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    mix_mode: str = choice(("batch", "elem"), "batch")
    mix_off_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erase_prob", "mix_prob", "mix_switch_prob"):
            check_range(f"augment.{name}", getattr(self, name), 0, 1)
        for name in ("repeats", "splits", "erase_count"):
            check_range(f"augment.{name}", getattr(self, name), 1)
        for name in ("color_jitter", "mixup", "cutmix", "mix_off_epoch"):
            check_range(f"augment.{name}", getattr(self, name), 0)
        if self.policy is not None:
            parse_policy(self.policy)
        if self.splits > 1 and (self.mixup or self.cutmix):
            raise ConfigError(f"augment.splits {self.splits} cannot be combined with mixup or cutmix: set those to 0")

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed, so that their targets are soft."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


@part("progressive")
class ProgressiveConfig:
    """Pictures that grow during the run, and regularisation with them (arXiv:2104.00298, section 4.2).

    The run has `stages` of equal length. Values grow linearly from these, in the first stage, to those configured
    elsewhere, in the last.

    Attributes:
      stages: how many stages; 1 for an ordinary run.
      image_size: side of the pictures in the first stage.
      drop_rate: dropout in the first stage; None as configured.
      magnitude: magnitude of RandAugment in the first stage; None as configured.
      mixup: alpha of mixup in the first stage; None as configured.
    """

    stages: int = 1
    image_size: int = 128
    drop_rate: float | None = None
    magnitude: float | None = None
    mixup: float | None = None

    def __post_init__(self) -> None:
        check_range("progressive.stages", self.stages, 1)
        check_range("progressive.image_size", self.image_size, 1)
