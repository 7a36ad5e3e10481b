"""The compiled data code (csrc/host) once more in numpy: the same functions, arguments and bits.

It is the oracle of the compiled code and serves where that was not built.
"""

from fastssl.data.numpy_host.draw import draw_examples
from fastssl.data.numpy_host.examples import plan_examples
from fastssl.data.numpy_host.order import pack_best_fit, shuffled

__all__ = ["draw_examples", "pack_best_fit", "plan_examples", "shuffled"]
