// fastssl._host: data preparation over numpy arrays. Every function releases the GIL while it works.
//
// fastssl/data/numpy_host has the same functions with the same bits, and their documentation.
#include "host/numpy_arrays.h"

PYBIND11_MODULE(_host, m) {
  m.doc() = "Compiled data preparation of fastssl: numpy arrays in and out.";
  fastssl::host::bind_examples(m);
  fastssl::host::bind_order(m);
  fastssl::host::bind_draw(m);
}
