// XLA handlers of choosing: check every size before any memory is read.
#include <cmath>
#include <cstdint>
#include <string>

#include "choose.h"
#include "library.h"
#include "places.h"
#include "ranks.h"
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

// Returns the logits unchanged, in place, and a copy of them: an operation that changes the logits
// after this call needs no copy of its own.
ffi::Error set_aside(F32 logits, Pred wanted, F32Out same, F32Out copy, S32Out places) {
  ChooseCopy call{};
  if (ffi::Error error = fill_rows(logits, wanted, places, &call.rows); error.failure()) {
    return error;
  }
  if (same->typed_data() != call.rows.logits) return wrong("the logits were moved");
  if (!has_shape(*copy, {call.rows.rows, call.rows.vocab})) return wrong("the copy has another shape");
  call.copy = copy->typed_data();
  choose_copy(call);
  return ffi::Error::Success();
}

// Checks the arrays of take_held and put_held: [rows, vocabulary] and three times [rows, columns].
template <class Tokens, class First, class Held>
ffi::Error check_held(F32 logits, const Tokens& tokens, const First& first, const Held& held) {
  const auto shape = logits.dimensions();
  if (shape.size() != 2 || shape[1] < 1 || shape[1] > INT32_MAX) {
    return wrong("the logits must be [rows, vocabulary]");
  }
  const auto wide = tokens.dimensions();
  if (wide.size() != 2 || wide[0] != shape[0] || wide[0] > INT32_MAX || wide[1] > INT32_MAX) {
    return wrong("the tokens must be [rows, columns]");
  }
  if (!has_shape(first, {wide[0], wide[1]}) || !has_shape(held, {wide[0], wide[1]})) {
    return wrong("there must be as many places and held logits as tokens");
  }
  return ffi::Error::Success();
}

ffi::Error take(F32 logits, S32 tokens, S32 counts, S32Out first, F32Out held, PredOut sound) {
  if (ffi::Error error = check_held(logits, tokens, *first, *held); error.failure()) return error;
  const auto shape = tokens.dimensions();
  if (!has_shape(counts, {shape[0]}) || !has_shape(*sound, {shape[0]})) {
    return wrong("counts and what is sound must be [rows]");
  }
  take_held({logits.typed_data(), tokens.typed_data(), counts.typed_data(), shape[0], shape[1],
             logits.dimensions()[1], first->typed_data(), held->typed_data(),
             sound->typed_data()});
  return ffi::Error::Success();
}

ffi::Error put(F32 logits, S32 tokens, S32 first, F32 held, F32Out moved) {
  if (ffi::Error error = check_held(logits, tokens, first, held); error.failure()) return error;
  if (moved->typed_data() != logits.typed_data()) return wrong("the logits were moved");
  const auto shape = tokens.dimensions();
  put_held({tokens.typed_data(), first.typed_data(), held.typed_data(), shape[0], shape[1],
            logits.dimensions()[1], moved->typed_data()});
  return ffi::Error::Success();
}

ffi::Error ranks(Pred keep, Pred on, S32 ids, F32 logits, F32 shares, F32 log_total,
                 S32Out ids_left, F32Out logits_left, F32Out shares_left, F32Out log_total_left,
                 S32Out last) {
  const auto shape = ids.dimensions();
  if (shape.size() != 2 || shape[0] > INT32_MAX || shape[1] < 1 || shape[1] > INT32_MAX) {
    return wrong("the candidates must be [rows, width]");
  }
  const std::int64_t rows = shape[0], width = shape[1];
  if (!has_shape(logits, {rows, width}) || !has_shape(shares, {rows, width}) ||
      !has_shape(keep, {rows, width})) {
    return wrong("logits, shares and who is kept must be as many as the candidates");
  }
  if (!has_shape(log_total, {rows}) || !has_shape(on, {rows}) || !has_shape(*last, {rows})) {
    return wrong("totals, rows that are on and last survivors must be [rows]");
  }
  if (ids_left->typed_data() != ids.typed_data() ||
      logits_left->typed_data() != logits.typed_data() ||
      shares_left->typed_data() != shares.typed_data() ||
      log_total_left->typed_data() != log_total.typed_data()) {
    return wrong("the candidates were moved");
  }
  close_ranks({keep.typed_data(), on.typed_data(), rows, width, ids_left->typed_data(),
               logits_left->typed_data(), shares_left->typed_data(),
               log_total_left->typed_data(), last->typed_data()});
  return ffi::Error::Success();
}

}  // namespace

JAXLLAMA_TARGET(choose_survey, survey);
JAXLLAMA_TARGET(choose_candidates, candidates);
JAXLLAMA_TARGET(choose_draw, draw);
JAXLLAMA_TARGET(choose_logprob, logprob);
JAXLLAMA_TARGET(choose_set_aside, set_aside);
JAXLLAMA_TARGET(take_held, take);
JAXLLAMA_TARGET(put_held, put);
JAXLLAMA_TARGET(close_ranks, ranks);

}  // namespace jaxllama
