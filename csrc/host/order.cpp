// Shuffling, and best-fit packing of examples into token budgets: fastssl/data/numpy_host/order.py, compiled.
#include <algorithm>
#include <bit>
#include <utility>

#include "host/numpy_arrays.h"
#include "host/philox.h"

namespace fastssl::host {
namespace {

py::array_t<int64_t> shuffled(int64_t count, uint64_t seed, uint32_t epoch, uint32_t purpose) {
  if (count < 0) throw py::value_error("shuffled: count is negative");
  std::vector<int64_t> order(static_cast<size_t>(count));
  {
    py::gil_scoped_release release;
    std::vector<std::pair<uint64_t, int64_t>> keys(order.size());
    for (int64_t i = 0; i < count; ++i) {
      keys[i] = {Stream(seed, purpose, epoch, static_cast<uint64_t>(i)).next(), i};
    }
    std::sort(keys.begin(), keys.end());
    for (size_t i = 0; i < order.size(); ++i) order[i] = keys[i].second;
  }
  return to_numpy(std::move(order));
}

// A set of integers in [0, size) that finds the smallest member at or above a value: a tree of 64-bit masks, where
// bit i of a node says whether child i holds any member.
class OrderedSet {
 public:
  explicit OrderedSet(int64_t size) {
    do {
      size = (size + 63) / 64;
      levels_.emplace_back(static_cast<size_t>(size), 0);
    } while (size > 1);
  }

  void insert(int64_t value) {
    for (auto& level : levels_) {
      level[value / 64] |= uint64_t{1} << value % 64;
      value /= 64;
    }
  }

  void erase(int64_t value) {
    for (auto& level : levels_) {
      level[value / 64] &= ~(uint64_t{1} << value % 64);
      if (level[value / 64] != 0) return;
      value /= 64;
    }
  }

  // The smallest member >= value, or -1.
  int64_t find_at_least(int64_t value) const {
    for (size_t height = 0; height < levels_.size(); ++height) {
      const auto& level = levels_[height];
      if (value / 64 >= static_cast<int64_t>(level.size())) return -1;
      const uint64_t candidates = level[value / 64] & ~uint64_t{0} << value % 64;
      if (candidates != 0) {
        value = value / 64 * 64 + std::countr_zero(candidates);
        while (height-- > 0) value = value * 64 + std::countr_zero(levels_[height][value]);
        return value;
      }
      value = value / 64 + 1;  // nothing to the right in this node: go on with its right neighbour
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

void pack(const int64_t* lengths, const int64_t* order, int64_t count, int64_t capacity, int64_t* bins) {
  OrderedSet rooms(capacity + 1);
  std::vector<int64_t> newest(static_cast<size_t>(capacity + 1), -1);  // by room: the bin that got it last
  std::vector<int64_t> older;                                          // by bin: the next one with the same room
  for (int64_t place = 0; place < count; ++place) {
    const int64_t length = lengths[order[place]];
    int64_t room = rooms.find_at_least(length);
    int64_t bin;
    if (room < 0) {
      room = capacity;
      bin = static_cast<int64_t>(older.size());
      older.push_back(-1);
    } else {
      bin = newest[room];
      newest[room] = older[bin];
      if (newest[room] < 0) rooms.erase(room);
    }
    bins[place] = bin;
    older[bin] = newest[room - length];
    newest[room - length] = bin;
    rooms.insert(room - length);
  }
}

py::array_t<int64_t> pack_best_fit(const Array<int64_t>& lengths, const Array<int64_t>& order, int64_t capacity) {
  const int64_t count = order.size(), items = lengths.size();
  const int64_t *length = lengths.data(), *item = order.data();
  std::vector<int64_t> bins(static_cast<size_t>(count));
  {
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
      if (item[i] < 0 || item[i] >= items || length[item[i]] < 0 || length[item[i]] > capacity) {
        throw py::value_error("pack_best_fit: an item does not exist, or is longer than the capacity");
      }
    }
    pack(length, item, count, capacity, bins.data());
  }
  return to_numpy(std::move(bins));
}

}  // namespace

void bind_order(py::module_& m) {
  m.def("shuffled", &shuffled, py::arg("count"), py::kw_only(), py::arg("seed"), py::arg("epoch"), py::arg("purpose"));
  m.def("pack_best_fit", &pack_best_fit, py::arg("lengths"), py::arg("order"), py::arg("capacity"));
}

}  // namespace fastssl::host
