// The adapter handler: checks every size, then adapts the rows that have an adapter.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "adapt.h"
#include "isa.h"
#include "library.h"
#include "pool.h"
#include "shapes.h"
#include "xla/ffi/api/ffi.h"

namespace jaxllama {
namespace {

namespace ffi = xla::ffi;

ffi::Error bad(const std::string& what) { return ffi::Error::InvalidArgument("adapt: " + what); }

// Neighbouring places of rows that have the same adapter.
struct Run {
  size_t first;
  int count;
};

ffi::Error adapt_rows(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> adapter,
                      ffi::Buffer<ffi::F32> scale, ffi::AnyBuffer norm, ffi::AnyBuffer a,
                      ffi::AnyBuffer b0, ffi::AnyBuffer b1, ffi::AnyBuffer b2,
                      ffi::ResultBuffer<ffi::F32> y, float eps) {
  const auto in = x.dimensions(), out = y->dimensions(), form = a.dimensions();
  if (in.size() != 2 || out.size() != 2 || in[0] != out[0]) return bad("x and y differ in rows");
  const int64_t count = in[0], width = in[1];
  if (!has_shape(adapter, {count}) || !has_shape(scale, {count})) {
    return bad("adapter and scale must have one number for each row");
  }
  if (norm.element_count() != 0 &&
      (norm.element_type() != ffi::F32 || !has_shape(norm, {width}))) {
    return bad("the norm must be float32 [width]");
  }
  if (a.element_type() != ffi::F16 || form.size() != 3 || form[1] != width) {
    return bad("a must be float16 [adapters, width, parts * rank]");
  }
  Adapters adapters{static_cast<const uint16_t*>(a.untyped_data()), {}, {}, 0, 0};
  int64_t total = 0;
  for (const ffi::AnyBuffer* b : {&b0, &b1, &b2}) {
    if (b->element_count() == 0) break;
    const auto dims = b->dimensions();
    if (b->element_type() != ffi::F16 || dims.size() != 3 || dims[0] != form[0] ||
        (adapters.parts > 0 && dims[1] != adapters.rank)) {
      return bad("every b must be float16 [adapters, rank, outward]");
    }
    adapters.rank = dims[1];
    adapters.b[adapters.parts] = static_cast<const uint16_t*>(b->untyped_data());
    adapters.outward[adapters.parts++] = dims[2];
    total += dims[2];
  }
  if (adapters.rank < kRankStep || adapters.rank > kMostRank || adapters.rank % kRankStep != 0) {
    return bad("the rank must be a multiple of 16, at most 256");
  }
  if (form[2] != adapters.parts * adapters.rank) return bad("a does not have the ranks of b");
  if (out[1] != total) return bad("y does not have the width of b");

  thread_local std::vector<int64_t> places;  // rows with an adapter
  places.clear();
  for (int64_t row = 0; row < count; ++row) {
    const int32_t chosen = adapter.typed_data()[row];
    if (chosen >= form[0]) return bad("there is no such adapter");
    if (chosen >= 0) {
      places.push_back(row);
    } else {
      std::memset(y->typed_data() + row * total, 0, total * sizeof(float));
    }
  }
  const auto* weight = norm.element_count() == 0 ? nullptr : static_cast<float*>(norm.untyped_data());
  const Rows rows{x.typed_data(), weight, nullptr, eps, count, width};
  // Rows of the same adapter lie together, and are computed a few at a time.
  const int32_t* numbers = adapter.typed_data();
  std::stable_sort(places.begin(), places.end(),
                   [&](int64_t one, int64_t other) { return numbers[one] < numbers[other]; });
  const auto each = static_cast<int64_t>(places.size()) / threads();
  const int64_t most = std::clamp<int64_t>(each, 1, kMostTogether);
  thread_local std::vector<Run> runs;
  runs.clear();
  for (size_t at = 0; at < places.size(); ++at) {
    const bool fits = !runs.empty() && runs.back().count < most &&
                      numbers[places[at]] == numbers[places[runs.back().first]];
    if (fits) {
      ++runs.back().count;
    } else {
      runs.push_back({at, 1});
    }
  }
  const AdaptOps& ops = JAXLLAMA_PICK(adapt_ops);
  const int64_t* found = places.data();
  const Run* all = runs.data();
  parallel_for(static_cast<int>(runs.size()), [&](int part) {
    const int64_t* own = found + all[part].first;
    ops.adapt(adapters, rows, own, all[part].count, numbers[*own], scale.typed_data(), total,
              y->typed_data());
  });
  return ffi::Error::Success();
}

using Any = ffi::AnyBuffer;

}  // namespace

JAXLLAMA_TARGET(adapt, adapt_rows,
                ffi::Ffi::Bind()
                    .Arg<ffi::Buffer<ffi::F32>>()  // x [rows, width]
                    .Arg<ffi::Buffer<ffi::S32>>()  // adapter of each row; below 0: none
                    .Arg<ffi::Buffer<ffi::F32>>()  // scale of each row
                    .Arg<Any>()                    // norm [width], or empty
                    .Arg<Any>()                    // a [adapters, width, parts * rank]
                    .Arg<Any>()                    // b [adapters, rank, outward] of each part;
                    .Arg<Any>()                    // empty if there are fewer parts
                    .Arg<Any>()
                    .Ret<ffi::Buffer<ffi::F32>>()  // y [rows, outward of all parts]
                    .Attr<float>("eps"));

}  // namespace jaxllama
