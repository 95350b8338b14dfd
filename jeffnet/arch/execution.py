"""How a pass runs, apart from what the Plan computes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """How a pass runs.

    Attributes:
      test_window: side of the windows of test-time pooling, which replaces the Plan's pooling: windows of the last map
        are averaged and classified one by one, and the logits are the mean of the windows' average and maximum
        (Hansen's test-time pooling, as in timm). 0 for none.
      frozen_norms: names of BatchNorms that keep and use their running statistics in training, too.
      norm_groups: in training, BatchNorm cuts the batch into so many groups and normalises them separately.
    """

    test_window: int = 0
    frozen_norms: frozenset[str] = frozenset()
    norm_groups: int = 1
