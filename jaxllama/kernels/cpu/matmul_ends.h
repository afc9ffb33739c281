// Sixteen numbers of a row, or fewer at its end.
//
// Included by matmul_body.h and matmul_amx_body.h.

// Loads sixteen numbers of a row; numbers past its end are zero.
inline Vec load_part(const float* from, int64_t left) {
  if (left >= kHalf) return load(from);
  float part[kHalf] = {};
  for (int64_t each = 0; each < left; ++each) part[each] = from[each];
  return load(part);
}

// Stores the first `left` of sixteen numbers, or all.
inline void store_part(float* to, Vec value, int64_t left) {
  if (left >= kHalf) {
    store(to, value);
    return;
  }
  float part[kHalf];
  store(part, value);
  for (int64_t each = 0; each < left; ++each) to[each] = part[each];
}
