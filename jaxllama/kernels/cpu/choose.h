// Choosing a token from rows of logits: the arguments of a call, and the functions of its parts.
//
// The handlers in choose_ffi.cc check and fill a call, choose.cc distributes it over the
// threads, and one ChooseBody per instruction set (choose_body.h) processes the numbers. Nothing
// here depends on XLA. Inactive rows take no time and return zeros; `wanted` marks the active rows.
//
// Bit rule. A row is cut into blocks at fixed places; the result of a block depends on the block
// only, and blocks are folded together from the first to the last. So a row has the same bits alone
// or with other rows, on any number of threads.
#pragma once

#include <cstdint>

namespace jaxllama {

constexpr int CHOOSE_GROUP = 64;   // logits with one maximum, used to find candidates
constexpr int CHOOSE_SPAN = 256;   // logits that share one sum: a draw finds its span first
constexpr int CHOOSE_BLOCK = 4096;  // logits of one part
constexpr int CHOOSE_SPARE = 16;    // ids that one store writes; surplus ones are overwritten
constexpr float CHOOSE_LOG2E = 1.44269504f;  // weights are powers of two

struct ChooseRows {
  const float* logits;  // [rows, vocab]
  const bool* wanted;   // [rows]
  std::int64_t rows, vocab;
  std::int32_t* places;  // scratch [rows]: indices of active rows
};

// The largest logit of every row, and whether all are below +inf.
struct ChooseSurvey {
  ChooseRows rows;
  float* partials;      // room for [rows, blocks, 2]
  std::int32_t* token;  // [rows] the first of the largest
  float* best;          // [rows]
  bool* sound;          // [rows]
};

// Sums exp((logit - best) / heat) of every row by spans.
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

// Computes the log-probability of one token per row: heat 1, over the whole vocabulary.
struct ChooseLogprob {
  ChooseRows rows;
  const std::int32_t* token;  // [rows]
  float* partials;            // room for [rows, blocks, 2]
  float* logprob;             // [rows]
};

// Copies the active rows; the copies of other rows are undefined.
struct ChooseCopy {
  ChooseRows rows;
  float* copy;  // [rows, vocab]
};

// The largest logit of a block, and whether all its logits are below +inf.
struct ChooseExtent {
  float most;
  bool sound;
};

// Groups that may contain candidates.
struct ChooseOpen {
  const std::int32_t* groups;  // ascending
  std::int64_t count;
};

// The functions of one instruction set on the numbers of a block or a row.
struct ChooseBody {
  ChooseExtent (*survey)(const float* x, std::int64_t count);
  // Returns the first place of a value, or `count`.
  std::int64_t (*find)(const float* x, std::int64_t count, float value);
  // Computes 2^((x - best) * scale) of each number.
  void (*weigh)(const float* x, std::int64_t count, float best, float scale, float* weights);
  // Computes the sums of these powers by spans and, if `maxima` is set, the largest x by groups.
  void (*add)(const float* x, std::int64_t count, float best, float scale, float* sums,
              float* maxima);
  // Counts the numbers that are at least as large.
  std::int64_t (*reaching)(const float* x, std::int64_t count, float least);
  // Writes ascending ids of logits above `least` in the open groups, and of at least the first
  // `ties` logits equal to it; the buffer has room for CHOOSE_SPARE more.
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

// Adds in double precision: float32 would lose thousands of small weights beside the largest, 1.
double choose_total(const float* weights, std::int64_t count);

void choose_copy(const ChooseCopy& call);
void choose_survey(const ChooseSurvey& call);
void choose_candidates(const ChooseCandidates& call);
void choose_draw(const ChooseDraw& call);
void choose_logprob(const ChooseLogprob& call);

}  // namespace jaxllama
