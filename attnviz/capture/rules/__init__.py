"""The rules of torch's ops, one family of ops a file; importing this package registers them."""

from attnviz.capture.rules import (
    activations,
    copies,
    elementwise,
    fused_kernels,
    products,
    windows,
)

__all__ = ["activations", "copies", "elementwise", "fused_kernels", "products", "windows"]
