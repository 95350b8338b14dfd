"""The one exception type for mistakes that a user can correct.

Everything jeffnet raises about its input (a name, a file, a folder, an option) is a `JeffnetError`. Its message names
the input, says what is wrong and what to do, in one line where that is possible, so that the command line can print it
as it is. Any other exception that leaves jeffnet is a defect of jeffnet.
"""

from collections.abc import Collection

_LONGEST_LINE = 500  # characters: some libraries quote a whole file


class JeffnetError(ValueError):
    """Base of all errors about input: catch it to catch every one of them."""


class UnknownModelError(JeffnetError):
    """A model name that is not in the zoo."""


class ArchitectureError(JeffnetError):
    """A block string or an architecture option that describes no network."""


class UnknownOptionError(ArchitectureError, TypeError):
    """An option that a model does not have."""


class InputError(JeffnetError):
    """Images of another shape or dtype than a model takes."""


class WeightsError(JeffnetError):
    """A weights file or state dict that cannot be read or does not fit the model."""


class ImageError(JeffnetError):
    """A picture that cannot be decoded."""


class DatasetError(JeffnetError):
    """A data set that is missing, empty or not laid out as described."""


class ConfigError(JeffnetError):
    """A training configuration with an unknown, ill-typed or contradictory entry."""


class UsageError(ConfigError):
    """Options of a command that do not exist, are missing, contradict one another, or have a value out of range."""

    exit_code = 2  # as of argparse


class OutputError(JeffnetError):
    """A file or folder that cannot be written."""


class EndingError(OutputError):
    """A file name whose extension stands for a format that cannot be written."""

    exit_code = 2  # an option has the name


class TrainingError(JeffnetError):
    """A training run that cannot continue, for example because its loss is NaN."""


def check_choice(
    name: str, value: object, choices: Collection[object], error: type[JeffnetError] = ConfigError
) -> None:
    """Raises `error` if an option is not one of its choices.

    Args:
      name: of the option.
      value: to be checked.
      choices: those that there are.
      error: what is raised.
    """
    if value not in choices:
        raise error(f"{name} {value!r} is not one of {', '.join(map(str, choices))}")


def one_line(error: BaseException) -> str:
    """An error's message without line breaks.

    Args:
      error: any exception.

    Returns:
      The message; the name of its class if it says nothing.
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message.

    Args:
      error: any exception.

    Returns:
      The line, cut to 500 characters; the name of its class if it says nothing.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."
