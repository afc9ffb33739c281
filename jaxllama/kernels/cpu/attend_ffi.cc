// XLA handlers of attention: check all sizes and positions once, before any memory is accessed.
#include <cstdint>
#include <string>

#include "attend.h"
#include "library.h"
#include "shapes.h"
#include "xla/ffi/api/ffi.h"

namespace jaxllama {
namespace {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using F32Out = ffi::ResultBuffer<ffi::F32>;
using S32Out = ffi::ResultBuffer<ffi::S32>;
using AnyOut = ffi::Result<ffi::AnyBuffer>;

ffi::Error wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("attention: " + what);
}

bool kind_of(ffi::DataType type, CacheKind* kind) {
  switch (type) {
    case ffi::DataType::U16:
    case ffi::DataType::BF16:
      *kind = CacheKind::bf16;
      return true;
    case ffi::DataType::F16:
      *kind = CacheKind::f16;
      return true;
    case ffi::DataType::F32:
      *kind = CacheKind::f32;
      return true;
    case ffi::DataType::S8:
      *kind = CacheKind::int8;
      return true;
    default:
      return false;
  }
}

// One buffer of the cache, as argument and as aliased result.
struct Pair {
  ffi::AnyBuffer in;
  AnyOut out;
};

bool lies_in_place(Pair pair) {
  return pair.in.untyped_data() == pair.out->untyped_data() &&
         pair.in.element_type() == pair.out->element_type() &&
         pair.in.size_bytes() == pair.out->size_bytes();
}

ffi::Error fill_cache(Pair keys, Pair values, AttendCache* cache) {
  const auto shape = keys.in.dimensions();
  if (shape.size() != 4) return wrong("the cache must be [slots, heads, columns, size]");
  if (!has_shape(values.in, {shape[0], shape[1], shape[2], shape[3]}) ||
      values.in.element_type() != keys.in.element_type()) {
    return wrong("keys and values differ in shape or type");
  }
  if (!kind_of(keys.in.element_type(), &cache->kind)) return wrong("no such type of cache");
  if (!lies_in_place(keys) || !lies_in_place(values)) {
    return wrong("the cache is not updated in place");
  }
  cache->keys = keys.out->untyped_data();
  cache->values = values.out->untyped_data();
  cache->slots = shape[0];
  cache->heads = shape[1];
  cache->columns = shape[2];
  cache->size = shape[3];
  if (cache->heads < 1 || cache->columns < 1) return wrong("the cache is empty");
  if (cache->size < 32 || cache->size > 256 || cache->size % 16 != 0) {
    return wrong("head sizes are 32 to 256 in steps of 16");
  }
  return ffi::Error::Success();
}

ffi::Error fill_scales(Pair keys, Pair values, AttendCache* cache) {
  if (cache->kind != CacheKind::int8) return wrong("only an int8 cache has scales");
  for (Pair scales : {keys, values}) {
    if (!has_shape(scales.in, {cache->slots, cache->heads, cache->columns}) ||
        scales.in.element_type() != ffi::DataType::F32) {
      return wrong("scales must be float32 [slots, heads, columns]");
    }
    if (!lies_in_place(scales)) return wrong("the scales are not updated in place");
  }
  cache->key_scales = static_cast<float*>(keys.out->untyped_data());
  cache->value_scales = static_cast<float*>(values.out->untyped_data());
  return ffi::Error::Success();
}

ffi::Error fill_input(F32 qkv, F32 cos, F32 sin, std::int64_t rows, const AttendCache& cache,
                      std::int64_t window, F32Out out, AttendInput* input) {
  if (qkv.dimensions().size() != 2 || qkv.dimensions()[0] != rows) {
    return wrong("the projections must be [rows, heads * size]");
  }
  const std::int64_t width = qkv.dimensions()[1], all = width / cache.size;
  input->heads = all - 2 * cache.heads;
  if (width % cache.size != 0 || input->heads < 1 || input->heads % cache.heads != 0) {
    return wrong("the projections do not hold a whole group of query heads per key head");
  }
  if (!has_shape(cos, {rows, cache.size / 2}) || !has_shape(sin, {rows, cache.size / 2})) {
    return wrong("cosines and sines must be [rows, size / 2]");
  }
  if (!has_shape(*out, {rows, input->heads * cache.size})) {
    return wrong("the result must be [rows, query heads * size]");
  }
  if (window < 0) return wrong("the window is negative");
  input->qkv = qkv.typed_data();
  input->cos = cos.typed_data();
  input->sin = sin.typed_data();
  input->window = window;
  input->out = out->typed_data();
  return ffi::Error::Success();
}

ffi::Error run_step(AttendStep* call, F32 qkv, F32 cos, F32 sin, S32 position,
                    ffi::Buffer<ffi::PRED> active, F32Out out, F32Out partials, S32Out counters,
                    std::int64_t window) {
  const AttendCache& cache = call->cache;
  call->rows = qkv.dimensions().size() == 2 ? qkv.dimensions()[0] : 0;
  if (call->rows < 1 || call->rows % cache.slots != 0) {
    return wrong("the rows of a step must be as many for each slot");
  }
  if (ffi::Error error = fill_input(qkv, cos, sin, call->rows, cache, window, out, &call->input);
      error.failure()) {
    return error;
  }
  if (!has_shape(position, {call->rows}) || !has_shape(active, {call->rows})) {
    return wrong("position and active must be [rows]");
  }
  call->blocks = (cache.columns + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
  if (call->rows * cache.heads * call->blocks > INT32_MAX) return wrong("the cache is too large");
  if (!has_shape(*partials, {call->rows, call->input.heads, call->blocks, cache.size + 2}) ||
      !has_shape(*counters, {call->rows * (cache.heads + 1) + 1})) {
    return wrong("the room for partial results has another shape");
  }
  call->position = position.typed_data();
  call->active = active.typed_data();
  call->partials = partials->typed_data();
  call->first_part = counters->typed_data();
  call->pending = call->first_part + call->rows + 1;
  for (std::int64_t row = 0; row < call->rows; ++row) {
    if (!call->active[row]) continue;
    if (call->position[row] < 0 || call->position[row] >= cache.columns) {
      return wrong("position " + std::to_string(call->position[row]) + " lies outside the cache");
    }
  }
  attend_step(*call);
  return ffi::Error::Success();
}

ffi::Error run_prompt(AttendPrompt* call, F32 qkv, F32 cos, F32 sin, S32 place, F32Out out,
                      std::int64_t window) {
  const AttendCache& cache = call->cache;
  const std::int64_t rows = qkv.dimensions().size() == 2 ? qkv.dimensions()[0] : 0;
  if (ffi::Error error = fill_input(qkv, cos, sin, rows, cache, window, out, &call->input);
      error.failure()) {
    return error;
  }
  if (!has_shape(place, {3})) return wrong("the place must be slot, start and count");
  const std::int32_t* numbers = place.typed_data();
  call->slot = numbers[0];
  call->start = numbers[1];
  call->count = numbers[2];
  if (call->slot < 0 || call->slot >= cache.slots || call->start < 0 || call->count < 0 ||
      call->count > rows || call->start + call->count > cache.columns) {
    return wrong(std::to_string(call->count) + " of " + std::to_string(rows) + " rows at column " +
                 std::to_string(call->start) + " of slot " + std::to_string(call->slot) +
                 " lie outside the cache");
  }
  if (rows * cache.heads > INT32_MAX) return wrong("there are too many rows");
  const std::int64_t width = call->input.heads * cache.size;
  for (std::int64_t i = call->count * width; i < rows * width; ++i) call->input.out[i] = 0.0f;
  attend_prompt(*call);
  return ffi::Error::Success();
}

ffi::Error step(F32 qkv, F32 cos, F32 sin, S32 position, ffi::Buffer<ffi::PRED> active,
                ffi::AnyBuffer keys, ffi::AnyBuffer values, F32Out out, F32Out partials,
                S32Out counters, AnyOut new_keys, AnyOut new_values, std::int64_t window) {
  AttendStep call{};
  if (ffi::Error error = fill_cache({keys, new_keys}, {values, new_values}, &call.cache);
      error.failure()) {
    return error;
  }
  if (call.cache.kind == CacheKind::int8) return wrong("an int8 cache needs scales");
  return run_step(&call, qkv, cos, sin, position, active, out, partials, counters, window);
}

ffi::Error step_scaled(F32 qkv, F32 cos, F32 sin, S32 position, ffi::Buffer<ffi::PRED> active,
                       ffi::AnyBuffer keys, ffi::AnyBuffer values, ffi::AnyBuffer key_scales,
                       ffi::AnyBuffer value_scales, F32Out out, F32Out partials, S32Out counters,
                       AnyOut new_keys, AnyOut new_values, AnyOut new_key_scales,
                       AnyOut new_value_scales, std::int64_t window) {
  AttendStep call{};
  if (ffi::Error error = fill_cache({keys, new_keys}, {values, new_values}, &call.cache);
      error.failure()) {
    return error;
  }
  if (ffi::Error error = fill_scales({key_scales, new_key_scales},
                                     {value_scales, new_value_scales}, &call.cache);
      error.failure()) {
    return error;
  }
  return run_step(&call, qkv, cos, sin, position, active, out, partials, counters, window);
}

ffi::Error prompt(F32 qkv, F32 cos, F32 sin, S32 place, ffi::AnyBuffer keys,
                  ffi::AnyBuffer values, F32Out out, AnyOut new_keys, AnyOut new_values,
                  std::int64_t window) {
  AttendPrompt call{};
  if (ffi::Error error = fill_cache({keys, new_keys}, {values, new_values}, &call.cache);
      error.failure()) {
    return error;
  }
  if (call.cache.kind == CacheKind::int8) return wrong("an int8 cache needs scales");
  return run_prompt(&call, qkv, cos, sin, place, out, window);
}

ffi::Error prompt_scaled(F32 qkv, F32 cos, F32 sin, S32 place, ffi::AnyBuffer keys,
                         ffi::AnyBuffer values, ffi::AnyBuffer key_scales,
                         ffi::AnyBuffer value_scales, F32Out out, AnyOut new_keys,
                         AnyOut new_values, AnyOut new_key_scales, AnyOut new_value_scales,
                         std::int64_t window) {
  AttendPrompt call{};
  if (ffi::Error error = fill_cache({keys, new_keys}, {values, new_values}, &call.cache);
      error.failure()) {
    return error;
  }
  if (ffi::Error error = fill_scales({key_scales, new_key_scales},
                                     {value_scales, new_value_scales}, &call.cache);
      error.failure()) {
    return error;
  }
  return run_prompt(&call, qkv, cos, sin, place, out, window);
}

auto step_input() {
  return ffi::Ffi::Bind()
      .Arg<F32>()
      .Arg<F32>()
      .Arg<F32>()
      .Arg<S32>()
      .Arg<ffi::Buffer<ffi::PRED>>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>();
}

auto prompt_input() {
  return ffi::Ffi::Bind()
      .Arg<F32>()
      .Arg<F32>()
      .Arg<F32>()
      .Arg<S32>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>();
}

}  // namespace

JAXLLAMA_TARGET(attend_step, step,
                step_input()
                    .Ret<F32>()
                    .Ret<F32>()
                    .Ret<S32>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Attr<std::int64_t>("window"));

JAXLLAMA_TARGET(attend_step_scaled, step_scaled,
                step_input()
                    .Arg<ffi::AnyBuffer>()
                    .Arg<ffi::AnyBuffer>()
                    .Ret<F32>()
                    .Ret<F32>()
                    .Ret<S32>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Attr<std::int64_t>("window"));

JAXLLAMA_TARGET(attend_prompt, prompt,
                prompt_input()
                    .Ret<F32>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Attr<std::int64_t>("window"));

JAXLLAMA_TARGET(attend_prompt_scaled, prompt_scaled,
                prompt_input()
                    .Arg<ffi::AnyBuffer>()
                    .Arg<ffi::AnyBuffer>()
                    .Ret<F32>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Ret<ffi::AnyBuffer>()
                    .Attr<std::int64_t>("window"));

}  // namespace jaxllama
