"""Random changes of single training pictures, beyond crops and flips; see `jeffnet.data.augment.policies`."""
