// From planned examples to the arrays of a packed batch: fastssl/data/numpy_host/draw.py, compiled.
#include <algorithm>
#include <numeric>
#include <utility>

#include "host/numpy_arrays.h"
#include "host/philox.h"

namespace fastssl::host {
namespace {

constexpr uint8_t kChosen = 1, kSpanStart = 2;

// fastssl.data.objectives.MaskingRules.
struct Rules {
  explicit Rules(const py::object& rules)
      : cls_id(rules.attr("cls_id").cast<int64_t>()),
        sep_id(rules.attr("sep_id").cast<int64_t>()),
        mask_id(rules.attr("mask_id").cast<int64_t>()),
        vocab_size(rules.attr("vocab_size").cast<int64_t>()),
        whole_words(rules.attr("whole_words").cast<bool>()),
        replace_spans_whole(rules.attr("replace_spans_whole").cast<bool>()),
        align_boundary(rules.attr("align_boundary").cast<bool>()),
        mask_threshold(rules.attr("mask_threshold").cast<uint64_t>()),
        random_threshold(rules.attr("random_threshold").cast<uint64_t>()),
        special_ids(to_vector<int64_t>(rules.attr("special_ids"))),
        prediction_counts(to_vector<int64_t>(rules.attr("prediction_counts"))),
        span_thresholds(to_vector<uint64_t>(rules.attr("span_thresholds"))) {}

  template <typename T>
  static std::vector<T> to_vector(const py::object& array) {
    const auto values = array.cast<Array<T>>();
    return {values.data(), values.data() + values.size()};
  }

  bool is_special(int64_t token) const {
    return std::find(special_ids.begin(), special_ids.end(), token) != special_ids.end();
  }

  int64_t cls_id, sep_id, mask_id, vocab_size;
  bool whole_words, replace_spans_whole, align_boundary;
  uint64_t mask_threshold, random_threshold;
  std::vector<int64_t> special_ids, prediction_counts;
  std::vector<uint64_t> span_thresholds;
};

struct Part {
  const void* tokens;
  const uint8_t* word_starts;
  int64_t begin, end;  // in tokens of the whole corpus
  bool wide;           // uint32 tokens, else uint16
};

struct Segment {
  int64_t begin, end;
};

class Corpus {
 public:
  Corpus(const py::list& tokens, const py::list& word_starts, const Array<int64_t>& part_offsets) {
    if (tokens.size() != word_starts.size() || part_offsets.size() != static_cast<py::ssize_t>(tokens.size()) + 1) {
      throw py::value_error("draw_examples: tokens, word_starts and part_offsets describe different parts");
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto ids = tokens[i].cast<py::array>(), starts = word_starts[i].cast<py::array>();
      const int64_t begin = part_offsets.at(i), end = part_offsets.at(i + 1);
      const bool contiguous = (ids.flags() & starts.flags() & py::array::c_style) != 0;
      if (ids.size() != end - begin || starts.size() != end - begin || starts.itemsize() != 1 || !contiguous ||
          ids.dtype().kind() != 'u' || (ids.itemsize() != 2 && ids.itemsize() != 4)) {
        throw py::value_error(
            "draw_examples: a part needs contiguous uint16 or uint32 tokens and as many 1-byte flags");
      }
      parts_.push_back({ids.data(), static_cast<const uint8_t*>(starts.data()), begin, end, ids.itemsize() == 4});
    }
  }

  const Part& part_of(const Segment& segment) const {
    auto after = std::upper_bound(parts_.begin(), parts_.end(), segment.begin,
                                  [](int64_t token, const Part& part) { return token < part.begin; });
    if (after == parts_.begin() || segment.end > (after - 1)->end) {
      throw py::value_error("draw_examples: a segment lies outside every part");
    }
    return *(after - 1);
  }

  void read(const Segment& segment, int64_t* ids, uint8_t* starts) const {
    const Part& part = part_of(segment);
    const int64_t begin = segment.begin - part.begin, end = segment.end - part.begin;
    if (part.wide) {
      std::copy(static_cast<const uint32_t*>(part.tokens) + begin, static_cast<const uint32_t*>(part.tokens) + end,
                ids);
    } else {
      std::copy(static_cast<const uint16_t*>(part.tokens) + begin, static_cast<const uint16_t*>(part.tokens) + end,
                ids);
    }
    std::copy(part.word_starts + begin, part.word_starts + end, starts);
    starts[0] = 1;
  }

  // Moves the boundary of adjacent segments from inside a word to its beginning, or its end where there is no other.
  void align(Segment& a, Segment& b) const {
    Segment& left = a.begin < b.begin ? a : b;
    Segment& right = a.begin < b.begin ? b : a;
    if (left.end != right.begin) return;
    const Part& part = part_of({left.begin, right.end});
    const uint8_t* starts = part.word_starts - part.begin;
    int64_t boundary = left.end;
    while (boundary > left.begin && !starts[boundary]) --boundary;
    if (boundary == left.begin) {
      boundary = left.end;
      while (boundary < right.end && !starts[boundary]) ++boundary;
    }
    if (boundary < right.end) left.end = right.begin = boundary;
  }

 private:
  std::vector<Part> parts_;
};

// The arrays of a batch under construction, and the memory that masking one example needs.
class Drawer {
 public:
  Drawer(const Corpus& corpus, const Rules& rules, uint64_t seed, uint32_t epoch)
      : corpus_(corpus), rules_(rules), seed_(seed), epoch_(epoch) {}

  void reserve(int64_t num_tokens, int64_t num_sequences) {
    for (auto* values : {&input_ids, &position_ids, &token_type_ids}) values->resize(num_tokens);
    starts_.resize(rules_.prediction_counts.size());
    cu_seqlens.reserve(num_sequences + 1);
    cu_seqlens.push_back(0);
  }

  void add(const int64_t* bounds, int64_t num_segments, uint64_t example) {
    const int64_t length = lay_out(bounds, num_segments);
    Stream stream(seed_, Purpose::kMasking, epoch_, example);
    choose(length, stream);
    replace(length, stream);
    end_ += length;
    cu_seqlens.push_back(static_cast<int32_t>(end_));
  }

  std::vector<int64_t> input_ids, position_ids, token_type_ids, masked_positions, masked_labels;
  std::vector<int32_t> cu_seqlens;

 private:
  // Writes [CLS] A [SEP] (B [SEP]); returns its length.
  int64_t lay_out(const int64_t* bounds, int64_t num_segments) {
    Segment segments[2] = {{bounds[0], bounds[1]}, {}};
    if (num_segments == 2) {
      segments[1] = {bounds[2], bounds[3]};
      if (rules_.align_boundary) corpus_.align(segments[0], segments[1]);
    }
    int64_t* ids = input_ids.data() + end_;
    int64_t* types = token_type_ids.data() + end_;
    ids[0] = rules_.cls_id;
    types[0] = 0;
    int64_t length = 1;
    for (int64_t s = 0; s < num_segments; ++s) {
      corpus_.read(segments[s], ids + length, starts_.data() + length);
      const int64_t after = length + segments[s].end - segments[s].begin;
      ids[after] = rules_.sep_id;
      std::fill(types + length, types + after + 1, s);
      length = after + 1;
    }
    std::iota(position_ids.begin() + end_, position_ids.begin() + end_ + length, 0);
    return length;
  }

  void find_words(const int64_t* ids, int64_t length) {
    begins_.clear();
    ends_.clear();
    for (int32_t place = 0; place < length; ++place) {
      if (rules_.is_special(ids[place])) continue;
      if (rules_.whole_words && !begins_.empty() && ends_.back() == place && !starts_[place]) {
        ++ends_.back();
      } else {
        begins_.push_back(place);
        ends_.push_back(place + 1);
      }
    }
  }

  void choose(int64_t length, Stream& stream) {
    find_words(input_ids.data() + end_, length);
    const auto num_words = static_cast<int32_t>(begins_.size());
    order_.resize(num_words);
    std::iota(order_.begin(), order_.end(), 0);
    taken_.assign(num_words, 0);
    chosen_.assign(length, 0);
    int64_t left = rules_.prediction_counts.at(length);
    for (int32_t visited = 0; visited < num_words && left > 0; ++visited) {
      std::swap(order_[visited], order_[visited + stream.below(num_words - visited)]);
      const int32_t first = order_[visited];
      if (taken_[first]) continue;
      const int32_t after = span_end(first, left, span_words(stream));
      if (after == first || std::find(taken_.begin() + first, taken_.begin() + after, 1) != taken_.begin() + after) {
        continue;
      }
      std::fill(taken_.begin() + first, taken_.begin() + after, 1);
      const int32_t begin = begins_[first], end = ends_[after - 1];
      std::fill(chosen_.begin() + begin, chosen_.begin() + end, rules_.replace_spans_whole ? kChosen : kSpanStart);
      chosen_[begin] = kSpanStart;
      left -= end - begin;
    }
  }

  int32_t span_words(Stream& stream) const {
    const auto& thresholds = rules_.span_thresholds;
    if (thresholds.size() == 1) return 1;
    return 1 + static_cast<int32_t>(std::upper_bound(thresholds.begin(), thresholds.end(), stream.next() >> 32) -
                                    thresholds.begin());
  }

  // The word after the longest allowed span from `first`: neighbouring words, at most `left` tokens.
  int32_t span_end(int32_t first, int64_t left, int32_t num_words) const {
    int32_t after = first + 1;
    const auto all = static_cast<int32_t>(begins_.size());
    while (after - first < num_words && after < all && begins_[after] == ends_[after - 1]) ++after;
    while (after > first && ends_[after - 1] - begins_[first] > left) --after;
    return after;
  }

  void replace(int64_t length, Stream& stream) {
    uint64_t kind = 0;
    for (int64_t place = 0; place < length; ++place) {
      if (!chosen_[place]) continue;
      int64_t& id = input_ids[end_ + place];
      masked_positions.push_back(end_ + place);
      masked_labels.push_back(id);
      const uint64_t draw = stream.next();
      if (chosen_[place] == kSpanStart) kind = draw >> 32;
      if (kind < rules_.mask_threshold) {
        id = rules_.mask_id;
      } else if (kind < rules_.random_threshold) {
        id = random_token(draw & 0xffffffffu);
      }
    }
  }

  // An ordinary token from 32 random bits: count past the special ones.
  int64_t random_token(uint64_t bits) const {
    const uint64_t ordinary = rules_.vocab_size - rules_.special_ids.size();
    auto token = static_cast<int64_t>(bits * ordinary >> 32);
    for (const int64_t special : rules_.special_ids) token += token >= special;
    return token;
  }

  const Corpus& corpus_;
  const Rules& rules_;
  uint64_t seed_;
  uint32_t epoch_;
  int64_t end_ = 0;  // tokens laid out by the examples before
  std::vector<uint8_t> starts_, taken_, chosen_;
  std::vector<int32_t> begins_, ends_, order_;  // words of the example, and their random order
};

// The number of tokens of a batch, after checking that every example has text and a number of predictions.
int64_t count_tokens(const int64_t* bounds, int64_t num_sequences, int64_t num_segments, const Rules& rules) {
  const auto longest = static_cast<int64_t>(rules.prediction_counts.size()) - 1;
  int64_t total = 0;
  for (int64_t b = 0; b < num_sequences; ++b) {
    int64_t length = 1 + num_segments;
    for (int64_t s = 0; s < num_segments; ++s, bounds += 2) {
      if (bounds[0] >= bounds[1]) throw py::value_error("draw_examples: a segment is empty");
      length += bounds[1] - bounds[0];
    }
    if (length > longest) throw py::value_error("draw_examples: an example is longer than prediction_counts");
    total += length;
  }
  return total;
}

py::tuple draw_examples(const py::list& tokens, const py::list& word_starts, const Array<int64_t>& part_offsets,
                        const Array<int64_t>& segments, const Array<int64_t>& examples, uint64_t seed, uint32_t epoch,
                        const py::object& masking_rules) {
  if (segments.ndim() != 3 || segments.shape(0) != examples.size() || segments.shape(1) < 1 || segments.shape(1) > 2 ||
      segments.shape(2) != 2) {
    throw py::value_error("draw_examples: segments must have shape (B, 1 or 2, 2) with one row per example");
  }
  const Corpus corpus(tokens, word_starts, part_offsets);
  const Rules rules(masking_rules);
  Drawer drawer(corpus, rules, seed, epoch);
  const int64_t num_sequences = segments.shape(0), num_segments = segments.shape(1);
  const int64_t *bounds = segments.data(), *items = examples.data();
  {
    py::gil_scoped_release release;
    drawer.reserve(count_tokens(bounds, num_sequences, num_segments, rules), num_sequences);
    for (int64_t b = 0; b < num_sequences; ++b) {
      drawer.add(bounds + b * num_segments * 2, num_segments, static_cast<uint64_t>(items[b]));
    }
  }
  return py::make_tuple(to_numpy(std::move(drawer.input_ids)), to_numpy(std::move(drawer.cu_seqlens)),
                        to_numpy(std::move(drawer.position_ids)), to_numpy(std::move(drawer.token_type_ids)),
                        to_numpy(std::move(drawer.masked_positions)), to_numpy(std::move(drawer.masked_labels)));
}

}  // namespace

void bind_draw(py::module_& m) {
  m.def("draw_examples", &draw_examples, py::arg("tokens"), py::arg("word_starts"), py::arg("part_offsets"),
        py::arg("segments"), py::arg("examples"), py::kw_only(), py::arg("seed"), py::arg("epoch"), py::arg("rules"));
}

}  // namespace fastssl::host
