// fastssl._host: data preparation over numpy arrays. Every function releases the GIL while it works.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_host, m) {
  m.doc() = "Compiled data preparation of fastssl: numpy arrays in and out.";
}
