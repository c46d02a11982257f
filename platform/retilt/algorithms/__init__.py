"""WHAT is optimised: tensors in, Loss out."""
