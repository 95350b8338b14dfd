"""What the columns of a table of pictures say."""

from dataclasses import dataclass

from jeffnet.arch.tasks import TASKS
from jeffnet.errors import ConfigError, check_choice


@dataclass(frozen=True)
class Columns:
    """What the columns of a table say. What is None or empty is found by usual names.

    Attributes:
      path: column of the pictures' paths; else path, file_name, filename, file or image.
      labels: column of the label; else label, labels or class. Several columns are one class each, 0 or 1, or one
        number each in regression.
      split: column of the split; else split, if there is one.
      group: column that says which pictures belong together, when pictures are divided into training and validation.
      separator: between several labels in a cell, such as `;`.
      folder: that paths are relative to, in which `{split}` stands for the split; None takes the table's.
      task: one of `jeffnet.arch.tasks.TASKS`.

    Raises:
      ConfigError: no such task, one column of labels twice, or an empty separator.
    """

    path: str | None = None
    labels: tuple[str, ...] = ()
    split: str | None = None
    separator: str | None = None
    folder: str | None = None
    task: str = "single_label"
    group: str | None = None

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"label_columns {', '.join(self.labels)!r} has a column twice: give each once")
        if self.separator == "":
            raise ConfigError("label_separator '' is empty: give what is between labels, such as ';'")


USUAL = Columns()
