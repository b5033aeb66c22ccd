"""Environments of other libraries: Gymnasium's vector environments and TorchRL's, stepped by saltus."""
