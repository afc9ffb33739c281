// Choosing a token from rows of logits: what a call is made of, and the bodies that do its parts.
//
// The handlers in choose_ffi.cc check and fill a call, choose.cc shares it out over the threads, and
// one body per instruction set (choose_body.h) goes through the numbers. Nothing here knows XLA.
// Rows that are not wanted cost nothing and give zeros.
//
// Bit rule. A row is cut into blocks at fixed places; what a block gives depends on the block only,
// and blocks are folded together from the first to the last. So a row has the same bits alone or in
// company, on any number of threads.
#pragma once

#include <cstdint>

namespace jaxllama {

constexpr int CHOOSE_GROUP = 64;   // logits with one maximum: where the best can be is known by group
constexpr int CHOOSE_SPAN = 256;   // logits with one sum: a draw finds its span first
constexpr int CHOOSE_BLOCK = 4096;  // logits of one part
constexpr int CHOOSE_SPARE = 16;    // ids that are written at once, most of them for nothing
constexpr float CHOOSE_LOG2E = 1.44269504f;  // weights are powers of two

struct ChooseRows {
  const float* logits;  // [rows, vocab]
  const bool* wanted;   // [rows]
  std::int64_t rows, vocab;
  std::int32_t* places;  // room for [rows]: those that are wanted
};

// The largest logit of every row, and whether all are below +inf.
struct ChooseSurvey {
  ChooseRows rows;
  float* partials;      // room for [rows, blocks, 2]
  std::int32_t* token;  // [rows] the first of the largest
  float* best;          // [rows]
  bool* sound;          // [rows]
};

// Every row's exp((logit - best) / heat), summed by spans.
struct ChooseWeights {
  ChooseRows rows;
  const float* best;  // [rows] the largest logit
  const float* heat;  // [rows]
  float* sums;        // room for [rows, spans]
  float* log_total;   // [rows] of all weights
};

struct ChooseCandidates {
  ChooseWeights weights;
  float* maxima;  // room for [rows, groups]
  std::int64_t count;
  std::int32_t* ids;  // [rows, count] best first, lower ids first among equals
  float* relative;    // [rows, count] (logit - best) / heat
};

struct ChooseDraw {
  ChooseWeights weights;
  const float* chance;  // [rows] in [0, 1)
  std::int32_t* token;  // [rows]
};

// Every row's log-probability of one token: at heat 1, over the whole vocabulary.
struct ChooseLogprob {
  ChooseRows rows;
  const std::int32_t* token;  // [rows]
  float* partials;            // room for [rows, blocks, 2]
  float* logprob;             // [rows]
};

// Copies the wanted rows; what the others get means nothing.
struct ChooseCopy {
  ChooseRows rows;
  float* copy;  // [rows, vocab]
};

// How large the logits of a block are.
struct ChooseExtent {
  float most;
  bool sound;
};

// Groups in which something may be found.
struct ChooseOpen {
  const std::int32_t* groups;  // upwards
  std::int64_t count;
};

// What is done with the numbers of a block or of a row, by one instruction set.
struct ChooseBody {
  ChooseExtent (*survey)(const float* x, std::int64_t count);
  // The first place of a value, or `count`.
  std::int64_t (*find)(const float* x, std::int64_t count, float value);
  // 2^((x - best) * scale), each.
  void (*weigh)(const float* x, std::int64_t count, float best, float scale, float* weights);
  // Their sums by spans, and with `maxima` the largest x by groups.
  void (*add)(const float* x, std::int64_t count, float best, float scale, float* sums,
              float* maxima);
  // How many are at least as large.
  std::int64_t (*reaching)(const float* x, std::int64_t count, float least);
  // Ids, upwards, of what is above `least` in the open groups, and of at least the first `ties` of
  // what equals it; there is room for CHOOSE_SPARE more.
  std::int64_t (*collect)(const float* x, std::int64_t count, const ChooseOpen& open, float least,
                          std::int64_t ties, std::int32_t* ids);
};

namespace portable {
extern const ChooseBody choose_body;
}
namespace avx2 {
extern const ChooseBody choose_body;
}
namespace avx512 {
extern const ChooseBody choose_body;
}

// In double precision: beside the likeliest token's weight of 1 thousands of small ones would be lost.
double choose_total(const float* weights, std::int64_t count);

void choose_copy(const ChooseCopy& call);
void choose_survey(const ChooseSurvey& call);
void choose_candidates(const ChooseCandidates& call);
void choose_draw(const ChooseDraw& call);
void choose_logprob(const ChooseLogprob& call);

}  // namespace jaxllama
