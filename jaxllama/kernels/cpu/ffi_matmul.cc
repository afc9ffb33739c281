// The matmul and row-lookup handlers: check every size, then call the kernels.
#include <cstdint>
#include <string>

#include "library.h"
#include "matmul.h"
#include "pool.h"
#include "shapes.h"
#include "take_rows.h"
#include "xla/ffi/api/ffi.h"

namespace jaxllama {
namespace {

namespace ffi = xla::ffi;

ffi::Error bad(const std::string& what) { return ffi::Error::InvalidArgument("matmul: " + what); }

bool is_empty(const ffi::AnyBuffer& buffer) { return buffer.element_count() == 0; }

template <class T>
const T* data(const ffi::AnyBuffer& buffer) {
  return is_empty(buffer) ? nullptr : static_cast<const T*>(buffer.untyped_data());
}

ffi::DataType number_type(Kind kind) {
  if (is_packed(kind)) return ffi::U8;
  return kind == Kind::f32 ? ffi::F32 : ffi::U16;
}

int64_t numbers_per_block(Kind kind) {
  const ffi::DataType type = number_type(kind);
  return static_cast<int64_t>(block_bytes(kind)) / (type == ffi::U8 ? 1 : type == ffi::U16 ? 2 : 4);
}

// The attributes that describe a matrix; the arrays must agree with them.
struct Form {
  int64_t kind, group, zero;
};

ffi::Error read_scales(const ffi::AnyBuffer& scales, const ffi::AnyBuffer& steps, Weights* w) {
  const auto dims = scales.dimensions();
  if (dims.size() != 4 || dims[0] != w->tiles || dims[3] != kTile || dims[2] < 1 || dims[2] > 2) {
    return bad("scales must be [tiles, groups, 1 or 2, 32]");
  }
  const bool has_steps = !is_empty(steps), in_halves = w->kind == Kind::q6;
  const int64_t per_scale = has_steps ? kBlocksPerUnit : w->group;
  if (dims[1] != (w->blocks + per_scale - 1) / per_scale) return bad("wrong number of groups");
  const ffi::DataType type = scales.element_type();
  if (type != ffi::U16 && (has_steps || type != ffi::F32)) return bad("wrong type of scales");
  if (has_steps) {
    const bool fits = w->kind != Kind::q8 && w->group == 1 && w->blocks % kBlocksPerUnit == 0 &&
                      dims[2] == (in_halves ? 1 : 2) && steps.element_type() == ffi::U8 &&
                      has_shape(steps, {w->tiles, w->blocks, 2, kTile});
    if (!fits) return bad("steps must be [tiles, blocks, 2, 32] bytes of a q4, q5 or q6 matrix");
  }
  if (in_halves && !has_steps) return bad("a q6 matrix has steps");
  w->scaling = in_halves          ? Scales::halves
               : has_steps        ? Scales::steps
               : type == ffi::U16 ? Scales::half
                                  : Scales::full;
  w->has_minima = dims[2] == 2;
  w->scales = scales.untyped_data();
  w->steps = data<uint8_t>(steps);
  return ffi::Error::Success();
}

ffi::Error read_weights(Form form, const ffi::AnyBuffer& codes, const ffi::AnyBuffer& scales,
                        const ffi::AnyBuffer& steps, Weights* w) {
  if (form.kind < 0 || form.kind > static_cast<int>(Kind::f32)) return bad("unknown kind");
  w->kind = static_cast<Kind>(form.kind);
  const auto dims = codes.dimensions();
  if (codes.element_type() != number_type(w->kind) || dims.size() != 3 ||
      dims[2] != numbers_per_block(w->kind)) {
    return bad("codes do not fit the kind");
  }
  w->codes = static_cast<const uint8_t*>(codes.untyped_data());
  w->tiles = dims[0];
  w->blocks = dims[1];
  if (form.group < 1 || form.zero < 0 || form.zero > 32) return bad("wrong group or zero");
  w->group = form.group;
  w->zero = static_cast<int>(form.zero);
  w->scaling = Scales::none;
  w->has_minima = false;
  if (!is_packed(w->kind)) {
    return is_empty(scales) ? ffi::Error::Success() : bad("this kind has no scales");
  }
  return read_scales(scales, steps, w);
}

// One of several matrices of equal size whose tiles lie one after the other.
struct Part {
  int64_t index, count;
};

// Narrows the weights to one part; false if there is no such part.
bool take_part(Part part, const ffi::AnyBuffer& scales, const ffi::AnyBuffer& steps, Weights* w) {
  if (part.count < 1 || part.index < 0 || part.index >= part.count) return false;
  if (w->tiles % part.count != 0) return false;
  w->tiles /= part.count;
  w->codes += part.index * w->tiles * w->blocks * static_cast<int64_t>(block_bytes(w->kind));
  if (w->scaling != Scales::none) {
    const auto bytes = static_cast<int64_t>(scales.size_bytes()) / part.count;
    w->scales = static_cast<const uint8_t*>(w->scales) + part.index * bytes;
  }
  if (!is_empty(steps)) {
    w->steps += part.index * (static_cast<int64_t>(steps.size_bytes()) / part.count);
  }
  return true;
}

ffi::Error multiply_part(const ffi::Buffer<ffi::F32>& x, const ffi::AnyBuffer& wanted,
                         const ffi::AnyBuffer& norm, const ffi::AnyBuffer& order,
                         const ffi::AnyBuffer& codes, const ffi::AnyBuffer& scales,
                         const ffi::AnyBuffer& steps, const ffi::AnyBuffer& bias,
                         const ffi::AnyBuffer& residual, ffi::ResultBuffer<ffi::F32>& y, Form form,
                         int64_t swiglu, float eps, bool of_prompt, Part part, bool clear) {
  Weights weights;
  if (ffi::Error error = read_weights(form, codes, scales, steps, &weights); error.failure()) {
    return error;
  }
  if (!take_part(part, scales, steps, &weights)) return bad("there is no such expert");
  const auto in = x.dimensions(), out = y->dimensions();
  if (in.size() != 2 || out.size() != 2 || in[0] != out[0]) return bad("x and y differ in rows");
  const int64_t width = in[1], outward = out[1];
  if (width <= (weights.blocks - 1) * kBlock || width > weights.blocks * kBlock) {
    return bad("x does not have the width of the weights");
  }
  const int64_t tile = swiglu ? kHalf : kTile;
  if (outward <= (weights.tiles - 1) * tile || outward > weights.tiles * tile) {
    return bad("y does not have the width of the weights");
  }
  if (!is_empty(wanted) &&
      (wanted.element_type() != ffi::PRED || !has_shape(wanted, {in[0]}))) {
    return bad("the wanted rows must be bool [rows]");
  }
  if (!is_empty(norm) && (norm.element_type() != ffi::F32 || !has_shape(norm, {width}))) {
    return bad("the norm must be float32 [width]");
  }
  if (!is_empty(order) && (order.element_type() != ffi::S32 || !has_shape(order, {width}))) {
    return bad("the order must be int32 [width]");
  }
  if (!is_empty(bias) &&
      (bias.element_type() != ffi::F32 || !has_shape(bias, {weights.tiles, kTile}))) {
    return bad("the bias must be float32 [tiles, 32]");
  }
  const int64_t added = swiglu ? 2 * outward : outward;
  if (!is_empty(residual) &&
      (residual.element_type() != ffi::F32 || !has_shape(residual, {in[0], added}))) {
    return bad("the residual must be float32, as y, or twice as wide for gates and values");
  }
  const auto* places = data<int32_t>(order);
  for (int64_t k = 0; places != nullptr && k < width; ++k) {
    if (places[k] < 0 || places[k] >= width) return bad("the order names an input that is not");
  }
  const Rows rows{x.typed_data(), data<float>(norm), places, eps, in[0], width, of_prompt};
  const Finish finish{data<float>(bias), data<float>(residual), y->typed_data(), outward,
                      swiglu != 0};
  const auto* some = data<bool>(wanted);
  if (!(some == nullptr ? matmul(weights, rows, finish)
                        : matmul_of(some, clear, weights, rows, finish))) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "matmul: out of memory");
  }
  return ffi::Error::Success();
}

ffi::Error multiply(ffi::Buffer<ffi::F32> x, ffi::AnyBuffer wanted, ffi::AnyBuffer norm,
                    ffi::AnyBuffer order, ffi::AnyBuffer codes, ffi::AnyBuffer scales,
                    ffi::AnyBuffer steps, ffi::AnyBuffer bias, ffi::AnyBuffer residual,
                    ffi::ResultBuffer<ffi::F32> y, int64_t kind, int64_t group, int64_t zero,
                    int64_t swiglu, float eps, int64_t of_prompt) {
  return multiply_part(x, wanted, norm, order, codes, scales, steps, bias, residual, y,
                       {kind, group, zero}, swiglu, eps, of_prompt != 0, {0, 1}, false);
}

ffi::Error multiply_expert(ffi::Buffer<ffi::F32> x, ffi::AnyBuffer wanted, ffi::AnyBuffer none,
                           ffi::AnyBuffer codes, ffi::AnyBuffer scales, ffi::AnyBuffer steps,
                           ffi::BufferR0<ffi::S32> expert, ffi::ResultBuffer<ffi::F32> y,
                           int64_t kind, int64_t group, int64_t zero, int64_t swiglu,
                           int64_t experts, int64_t of_prompt) {
  if (!is_empty(none)) return bad("an expert has no norm, bias or residual");
  return multiply_part(x, wanted, none, none, codes, scales, steps, none, none, y,
                       {kind, group, zero}, swiglu, 0.0f, of_prompt != 0,
                       {*expert.typed_data(), experts}, true);
}

ffi::Error look_up(ffi::Buffer<ffi::S32> tokens, ffi::AnyBuffer codes, ffi::AnyBuffer scales,
                   ffi::AnyBuffer steps, ffi::ResultBuffer<ffi::F32> y, int64_t kind,
                   int64_t group, int64_t zero, int64_t outward) {
  Weights weights;
  if (ffi::Error error = read_weights({kind, group, zero}, codes, scales, steps, &weights);
      error.failure()) {
    return error;
  }
  const auto in = tokens.dimensions(), out = y->dimensions();
  if (in.size() != 1 || out.size() != 2 || in[0] != out[0] ||
      out[1] > weights.blocks * kBlock || outward < 1 || outward > weights.tiles * kTile) {
    return bad("the rows looked up do not have the width of the weights");
  }
  parallel_for(1, [&](int) {
    take_rows(weights, tokens.typed_data(), in[0], outward, out[1], y->typed_data());
  });
  return ffi::Error::Success();
}

using Any = ffi::AnyBuffer;
using Float = ffi::Buffer<ffi::F32>;

}  // namespace

JAXLLAMA_TARGET(matmul, multiply,
                ffi::Ffi::Bind()
                    .Arg<Float>()  // x [rows, width]
                    .Arg<Any>()    // active rows [rows], or empty: all
                    .Arg<Any>()    // norm [width], or empty
                    .Arg<Any>()    // order [width], or empty
                    .Arg<Any>()    // codes
                    .Arg<Any>()    // scales, or empty
                    .Arg<Any>()    // steps, or empty
                    .Arg<Any>()    // bias [tiles, 32], or empty
                    .Arg<Any>()    // residual [rows, outward], with swiglu twice as wide; or empty
                    .Ret<Float>()  // y [rows, outward]
                    .Attr<int64_t>("kind")
                    .Attr<int64_t>("group")
                    .Attr<int64_t>("zero")
                    .Attr<int64_t>("swiglu")
                    .Attr<float>("eps")
                    .Attr<int64_t>("of_prompt"));

JAXLLAMA_TARGET(matmul_expert, multiply_expert,
                ffi::Ffi::Bind()
                    .Arg<Float>()  // x [rows, width]
                    .Arg<Any>()    // active rows [rows], or empty: all
                    .Arg<Any>()    // empty
                    .Arg<Any>()    // codes of all experts
                    .Arg<Any>()    // scales, or empty
                    .Arg<Any>()    // steps, or empty
                    .Arg<ffi::BufferR0<ffi::S32>>()  // number of the expert
                    .Ret<Float>()                    // y [rows, outward of one expert]
                    .Attr<int64_t>("kind")
                    .Attr<int64_t>("group")
                    .Attr<int64_t>("zero")
                    .Attr<int64_t>("swiglu")
                    .Attr<int64_t>("experts")
                    .Attr<int64_t>("of_prompt"));

JAXLLAMA_TARGET(take_rows, look_up,
                ffi::Ffi::Bind()
                    .Arg<ffi::Buffer<ffi::S32>>()  // tokens
                    .Arg<Any>()                    // codes
                    .Arg<Any>()                    // scales, or empty
                    .Arg<Any>()                    // steps, or empty
                    .Ret<Float>()                  // y [tokens, width]
                    .Attr<int64_t>("kind")
                    .Attr<int64_t>("group")
                    .Attr<int64_t>("zero")
                    .Attr<int64_t>("outward"));

}  // namespace jaxllama
