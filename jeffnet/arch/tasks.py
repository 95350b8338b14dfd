"""What models predict of a picture."""

# One of the classes, any number of them, or numbers.
TASKS = ("single_label", "multi_label", "regression")
