"""Programs of the contenders; each module imports one framework only."""
