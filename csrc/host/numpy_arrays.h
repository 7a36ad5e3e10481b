// How the data code takes numpy arrays and gives them back.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace fastssl::host {

namespace py = pybind11;

// An argument of exactly this type after pybind11's conversion; strides are those of C.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Hands a vector's memory to numpy without copying it. Needs the GIL.
template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  py::capsule release(owner.release(), [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(std::move(shape), data, release);
}

template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
  const auto size = static_cast<py::ssize_t>(values.size());
  return to_numpy(std::move(values), {size});
}

void bind_examples(py::module_& m);
void bind_order(py::module_& m);
void bind_draw(py::module_& m);

}  // namespace fastssl::host
