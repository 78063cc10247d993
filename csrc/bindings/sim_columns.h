// Reading one key of a dict as an array or a number.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <string>
#include <vector>

namespace leeboard {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& key, const std::string& problem) {
  throw py::value_error(key + ": " + problem);
}

inline py::object entry(const py::dict& dict, const char* key) {
  if (!dict.contains(key)) refuse(key, "missing");
  return dict[key];
}

// A one-dimensional array of exactly this type.
template <class T>
std::vector<T> array_of(const py::object& value, const std::string& key) {
  if (!py::isinstance<py::array>(value)) refuse(key, "expected a numpy array");
  const auto array = py::array::ensure(value);
  if (array.ndim() != 1 || !array.dtype().equal(py::dtype::of<T>())) {
    refuse(key, "got " + py::str(array.dtype()).cast<std::string>() + " of " +
                    std::to_string(array.ndim()) + " dimensions, expected " +
                    py::str(py::dtype::of<T>()).cast<std::string>() + " of one");
  }
  const auto plain = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(array);
  return std::vector<T>(plain.data(), plain.data() + plain.size());
}

template <class T>
std::vector<T> numbers(const py::dict& dict, const char* key) {
  return array_of<T>(entry(dict, key), key);
}

template <class T>
std::vector<T> numbers(const py::dict& dict, const char* key, size_t count) {
  std::vector<T> out = numbers<T>(dict, key);
  if (out.size() != count) {
    refuse(key, "has " + std::to_string(out.size()) + " values, expected " + std::to_string(count));
  }
  return out;
}

inline double finite(double value, const std::string& key, double least, double most) {
  if (!(value >= least && value <= most)) {
    refuse(key, "got " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
                    std::to_string(most));
  }
  return value;
}

template <class T>
T scalar(const py::dict& dict, const char* key) {
  const py::object value = entry(dict, key);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    refuse(key, "got " + py::repr(value).cast<std::string>() + ", expected a number in range");
  }
}

inline uint64_t below(uint64_t value, uint64_t bound, const std::string& key) {
  if (value >= bound) {
    refuse(key, "got " + std::to_string(value) + ", expected less than " + std::to_string(bound));
  }
  return value;
}

}  // namespace leeboard
