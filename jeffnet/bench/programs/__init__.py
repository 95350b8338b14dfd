"""What runs in the contenders' processes: each module needs one framework and imports no other."""
