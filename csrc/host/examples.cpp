// From sentence lengths to examples: fastssl/data/numpy_host/examples.py, compiled.
#include <algorithm>
#include <utility>

#include "host/numpy_arrays.h"
#include "host/philox.h"

namespace fastssl::host {
namespace {

enum SentenceObjective : int { kNone = 0, kNextSentence = 1, kSentenceOrder = 2 };

struct Segment {
  int64_t begin, end;
  int64_t length() const {
    return end - begin;
  }
};

class Planner {
 public:
  Planner(const Array<int64_t>& pieces, const Array<int64_t>& documents, uint64_t seed, uint32_t epoch, int64_t room,
          uint64_t short_threshold)
      : pieces_(pieces.data()),
        documents_(documents.data()),
        num_documents_(documents.size() - 1),
        seed_(seed),
        epoch_(epoch),
        room_(room),
        short_threshold_(short_threshold) {}

  void plan(int sentence_objective) {
    for (document_ = 0; document_ < num_documents_; ++document_) {
      stream_ = Stream(seed_, Purpose::kDocument, epoch_, static_cast<uint64_t>(document_));
      const int64_t begin = documents_[document_], end = documents_[document_ + 1];
      if (sentence_objective == kNone) {
        windows(begin, end);
      } else if (sentence_objective == kNextSentence) {
        next_sentence_pairs(begin, end);
      } else {
        sentence_order_pairs(begin, end);
      }
    }
  }

  std::vector<int64_t> bounds;  // begin and end of every segment, in tokens
  std::vector<int8_t> labels;

 private:
  void windows(int64_t first, int64_t end) {
    while (first < end) {
      const int64_t limit = pieces_[first] + target_length();
      int64_t after = first + 1;
      while (after < end && pieces_[after + 1] <= limit) ++after;
      bounds.insert(bounds.end(), {pieces_[first], pieces_[after]});
      labels.push_back(0);
      first = after;
    }
  }

  void next_sentence_pairs(int64_t first, int64_t end) {
    while (first < end) {
      const int64_t target = target_length();
      int64_t after = chunk_end(first, target, end);
      const int64_t middle = split(first, after);
      const Segment a{pieces_[first], pieces_[middle]};
      Segment b{pieces_[middle], pieces_[after]};
      const bool random_next = after - first == 1 || stream_.next() >> 63;
      if (random_next) {
        b = random_segment(target - a.length());
        after = middle;  // the unused sentences are put back
      }
      add_truncated(a, b, random_next);
      first = after;
    }
  }

  void sentence_order_pairs(int64_t first, int64_t end) {
    while (first < end) {
      const int64_t after = chunk_end(first, target_length(), end);
      const int64_t low = pieces_[first], high = pieces_[after];
      const int64_t middle =
          after - first > 1 ? pieces_[split(first, after)] : low + 1 + below(std::max<int64_t>(1, high - low - 1));
      const bool swapped = stream_.next() >> 63;
      const Segment a{low, middle}, b{middle, high};
      if (middle < high) add_truncated(swapped ? b : a, swapped ? a : b, swapped);
      first = after;
    }
  }

  int64_t below(int64_t n) {
    return static_cast<int64_t>(stream_.below(static_cast<uint64_t>(n)));
  }

  int64_t target_length() {
    return stream_.happens(short_threshold_) ? 2 + below(room_ - 1) : room_;
  }

  // The piece after the shortest run from `first` that reaches the target length, or `end`.
  int64_t chunk_end(int64_t first, int64_t target, int64_t end) const {
    const int64_t wanted = pieces_[first] + std::max<int64_t>(1, target);
    int64_t after = first + 1;
    while (after < end && pieces_[after] < wanted) ++after;
    return after;
  }

  int64_t split(int64_t first, int64_t after) {
    return first + (after - first > 1 ? 1 + below(after - first - 1) : 1);
  }

  Segment random_segment(int64_t target) {
    int64_t other = below(num_documents_ - 1);
    other += other >= document_;
    const int64_t begin = documents_[other], end = documents_[other + 1];
    const int64_t first = begin + below(end - begin);
    return {pieces_[first], pieces_[chunk_end(first, target, end)]};
  }

  void add_truncated(Segment a, Segment b, bool label) {
    const int64_t excess = a.length() + b.length() - room_;
    uint64_t bits = 0;
    for (int64_t i = 0; i < excess; ++i) {
      bits = i % 64 == 0 ? stream_.next() : bits >> 1;
      Segment& longer = a.length() > b.length() ? a : b;
      if (bits & 1) {
        ++longer.begin;
      } else {
        --longer.end;
      }
    }
    bounds.insert(bounds.end(), {a.begin, a.end, b.begin, b.end});
    labels.push_back(label);
  }

  const int64_t* pieces_;
  const int64_t* documents_;
  int64_t num_documents_;
  uint64_t seed_;
  uint32_t epoch_;
  int64_t room_;
  uint64_t short_threshold_;
  int64_t document_ = 0;
  Stream stream_{0, Purpose::kDocument, 0, 0};
};

py::tuple plan_examples(const Array<int64_t>& piece_offsets, const Array<int64_t>& document_offsets, uint64_t seed,
                        uint32_t epoch, int sentence_objective, int64_t room, uint64_t short_threshold) {
  if (document_offsets.size() < 1 || room < 2 || (sentence_objective == kNextSentence && document_offsets.size() < 3)) {
    throw py::value_error("plan_examples: needs document offsets, a room of 2, and two documents for random segments");
  }
  if (document_offsets.data()[document_offsets.size() - 1] >= piece_offsets.size()) {
    throw py::value_error("plan_examples: document_offsets point behind the last piece");
  }
  Planner planner(piece_offsets, document_offsets, seed, epoch, room, short_threshold);
  {
    py::gil_scoped_release release;
    planner.plan(sentence_objective);
  }
  const auto count = static_cast<py::ssize_t>(planner.labels.size());
  const py::ssize_t segments = sentence_objective == kNone ? 1 : 2;
  return py::make_tuple(to_numpy(std::move(planner.bounds), {count, segments, 2}), to_numpy(std::move(planner.labels)));
}

}  // namespace

void bind_examples(py::module_& m) {
  m.def("plan_examples", &plan_examples, py::arg("piece_offsets"), py::arg("document_offsets"), py::kw_only(),
        py::arg("seed"), py::arg("epoch"), py::arg("sentence_objective"), py::arg("room"), py::arg("short_threshold"));
}

}  // namespace fastssl::host
