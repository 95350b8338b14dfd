"""The choices of options on data, for a command line that must not wait for NumPy."""

LOADERS = ("grain", "tf", "pt")
ON_BAD_IMAGE = ("error", "skip")
# How often a class is drawn in training: in proportion to its number of pictures to this power.
SAMPLINGS = {"natural": 1.0, "square_root": 0.5, "balanced": 0.0}
# How the loader 'tf' resizes.
RESIZES = ("legacy", "half_pixel", "antialias", "pillow")
# The 200 classes that ImageNet-A (arXiv:1907.07174) and ImageNet-R (arXiv:2006.16241) have of the 1,000; ImageNet-V2
# (arXiv:1902.10811) and ImageNet-Sketch (arXiv:1905.13549) have all; `data` stands for those of the data set.
SUBSETS = ("imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-sketch", "data")
