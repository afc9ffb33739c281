// The handlers of choosing: every size and place is checked here, before anything is read.
#include <cmath>
#include <cstdint>
#include <string>

#include "choose.h"
#include "library.h"
#include "places.h"
#include "shapes.h"
#include "xla/ffi/api/ffi.h"

namespace jaxllama {
namespace {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using Pred = ffi::Buffer<ffi::PRED>;
using F32Out = ffi::ResultBuffer<ffi::F32>;
using S32Out = ffi::ResultBuffer<ffi::S32>;
using PredOut = ffi::ResultBuffer<ffi::PRED>;

ffi::Error wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("choosing: " + what);
}

std::int64_t pieces(const ChooseRows& rows, std::int64_t size) {
  return (rows.vocab + size - 1) / size;
}

ffi::Error fill_rows(F32 logits, Pred wanted, S32Out places, ChooseRows* rows) {
  const auto shape = logits.dimensions();
  if (shape.size() != 2 || shape[1] < 1) return wrong("the logits must be [rows, vocabulary]");
  rows->rows = shape[0];
  rows->vocab = shape[1];
  if (shape[1] > INT32_MAX || shape[0] * pieces(*rows, CHOOSE_GROUP) > INT32_MAX) {
    return wrong("there are too many logits");
  }
  if (!has_shape(wanted, {rows->rows}) || !has_shape(*places, {rows->rows})) {
    return wrong("wanted rows and their places must be [rows]");
  }
  rows->logits = logits.typed_data();
  rows->wanted = wanted.typed_data();
  rows->places = places->typed_data();
  return ffi::Error::Success();
}

ffi::Error fill_weights(F32 best, F32 heat, F32Out log_total, F32Out sums, ChooseWeights* weights) {
  const ChooseRows& rows = weights->rows;
  if (!has_shape(best, {rows.rows}) || !has_shape(heat, {rows.rows}) ||
      !has_shape(*log_total, {rows.rows})) {
    return wrong("best, heat and the totals must be [rows]");
  }
  if (!has_shape(*sums, {rows.rows, pieces(rows, CHOOSE_SPAN)})) {
    return wrong("the room for sums has another shape");
  }
  weights->best = best.typed_data();
  weights->heat = heat.typed_data();
  weights->sums = sums->typed_data();
  weights->log_total = log_total->typed_data();
  return ffi::Error::Success();
}

ffi::Error survey(F32 logits, Pred wanted, S32Out token, F32Out best, PredOut sound,
                  S32Out places, F32Out partials) {
  ChooseSurvey call{};
  if (ffi::Error error = fill_rows(logits, wanted, places, &call.rows); error.failure()) {
    return error;
  }
  const std::int64_t rows = call.rows.rows;
  if (!has_shape(*token, {rows}) || !has_shape(*best, {rows}) || !has_shape(*sound, {rows})) {
    return wrong("the results must be [rows]");
  }
  if (!has_shape(*partials, {rows, pieces(call.rows, CHOOSE_BLOCK), 2})) {
    return wrong("the room for partial results has another shape");
  }
  call.partials = partials->typed_data();
  call.token = token->typed_data();
  call.best = best->typed_data();
  call.sound = sound->typed_data();
  choose_survey(call);
  return ffi::Error::Success();
}

ffi::Error candidates(F32 logits, F32 best, F32 heat, Pred wanted, S32Out ids, F32Out relative,
                      F32Out log_total, S32Out places, F32Out sums, F32Out maxima) {
  ChooseCandidates call{};
  if (ffi::Error error = fill_rows(logits, wanted, places, &call.weights.rows); error.failure()) {
    return error;
  }
  if (ffi::Error error = fill_weights(best, heat, log_total, sums, &call.weights);
      error.failure()) {
    return error;
  }
  const ChooseRows& rows = call.weights.rows;
  const auto shape = ids->dimensions();
  if (shape.size() != 2 || shape[0] != rows.rows || shape[1] < 1 || shape[1] > rows.vocab) {
    return wrong("the ids must be [rows, 1 to vocabulary]");
  }
  call.count = shape[1];
  if (!has_shape(*relative, {rows.rows, call.count})) return wrong("ids and logits differ in shape");
  if (!has_shape(*maxima, {rows.rows, pieces(rows, CHOOSE_GROUP)})) {
    return wrong("the room for maxima has another shape");
  }
  call.maxima = maxima->typed_data();
  call.ids = ids->typed_data();
  call.relative = relative->typed_data();
  choose_candidates(call);
  return ffi::Error::Success();
}

ffi::Error draw(F32 logits, F32 best, F32 heat, F32 chance, Pred wanted, S32Out token,
                F32Out log_total, S32Out places, F32Out sums) {
  ChooseDraw call{};
  if (ffi::Error error = fill_rows(logits, wanted, places, &call.weights.rows); error.failure()) {
    return error;
  }
  if (ffi::Error error = fill_weights(best, heat, log_total, sums, &call.weights);
      error.failure()) {
    return error;
  }
  const std::int64_t rows = call.weights.rows.rows;
  if (!has_shape(chance, {rows}) || !has_shape(*token, {rows})) {
    return wrong("chances and tokens must be [rows]");
  }
  call.chance = chance.typed_data();
  call.token = token->typed_data();
  choose_draw(call);
  return ffi::Error::Success();
}

ffi::Error logprob(F32 logits, S32 token, Pred wanted, F32Out found, S32Out places,
                   F32Out partials) {
  ChooseLogprob call{};
  if (ffi::Error error = fill_rows(logits, wanted, places, &call.rows); error.failure()) {
    return error;
  }
  const ChooseRows& rows = call.rows;
  if (!has_shape(token, {rows.rows}) || !has_shape(*found, {rows.rows})) {
    return wrong("tokens and their log-probabilities must be [rows]");
  }
  if (!has_shape(*partials, {rows.rows, pieces(rows, CHOOSE_BLOCK), 2})) {
    return wrong("the room for partial results has another shape");
  }
  call.token = token.typed_data();
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    if (rows.wanted[row] && (call.token[row] < 0 || call.token[row] >= rows.vocab)) {
      return wrong("token " + std::to_string(call.token[row]) + " lies outside the vocabulary");
    }
  }
  call.partials = partials->typed_data();
  call.logprob = found->typed_data();
  choose_logprob(call);
  return ffi::Error::Success();
}

ffi::Error first(S32 tokens, S32 counts, S32Out found, std::int64_t vocab) {
  const auto shape = tokens.dimensions();
  if (shape.size() != 2 || shape[0] > INT32_MAX || shape[1] > INT32_MAX) {
    return wrong("the tokens must be [rows, columns]");
  }
  if (!has_shape(counts, {shape[0]}) || !has_shape(*found, {shape[0], shape[1]})) {
    return wrong("counts must be [rows], and places as many as tokens");
  }
  if (vocab < 1 || vocab > INT32_MAX) return wrong("the vocabulary has a wrong size");
  first_places({tokens.typed_data(), counts.typed_data(), shape[0], shape[1], vocab,
                found->typed_data()});
  return ffi::Error::Success();
}

}  // namespace

JAXLLAMA_TARGET(first_places, first,
                ffi::Ffi::Bind().Arg<S32>().Arg<S32>().Ret<S32>().Attr<std::int64_t>("vocab"));

JAXLLAMA_TARGET(choose_survey, survey);
JAXLLAMA_TARGET(choose_candidates, candidates);
JAXLLAMA_TARGET(choose_draw, draw);
JAXLLAMA_TARGET(choose_logprob, logprob);

}  // namespace jaxllama
