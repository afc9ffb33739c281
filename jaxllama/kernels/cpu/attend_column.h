// The column of a token: rotated queries on their way in, its key and value on theirs to the cache.
//
// Included by attend_body.h.

// Rotates one head by its position; the two numbers of a pair lie half a head apart.
inline void rotate(const float* from, const float* cos, const float* sin, std::int64_t size,
                   float scale, float* __restrict to) {
  const std::int64_t half = size / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const float one = from[i], two = from[half + i];
    to[i] = (one * cos[i] - two * sin[i]) * scale;
    to[half + i] = (two * cos[i] + one * sin[i]) * scale;
  }
}

// Rotates and scales the query heads [head, head + count) of an input row.
template <class Dot>
void put_queries(const AttendInput& input, std::int64_t width, std::int64_t size, std::int64_t row,
                 std::int64_t head, std::int64_t count, float* turned, float* to) {
  // Scores are exponents of 2, so the scale is log2(e) / sqrt(size).
  const float scale = 1.44269504f / __builtin_sqrtf(static_cast<float>(size));
  const float* angles[] = {input.cos + row * size / 2, input.sin + row * size / 2};
  for (std::int64_t i = 0; i < count; ++i) {
    rotate(input.qkv + row * width + (head + i) * size, angles[0], angles[1], size, scale, turned);
    Dot::put_query(turned, size, to + i * size);
  }
}

template <class T>
void put_column(const float* from, std::int64_t size, std::int64_t column, void* to, float*) {
  narrow(from, size, static_cast<T*>(to) + column * size);
}

template <>
void put_column<std::int8_t>(const float* from, std::int64_t size, std::int64_t column, void* to,
                             float* scales) {
  scales[column] = quantise(from, size, static_cast<std::int8_t*>(to) + column * size);
}

// Writes the key and value of one input row and head to a column of the cache.
template <class T>
void append_column(const AttendInput& input, const AttendCache& cache, std::int64_t row,
                   std::int64_t head, std::int64_t slot, std::int64_t column, float* turned) {
  const std::int64_t size = cache.size, width = (input.heads + 2 * cache.heads) * size;
  const float* key = input.qkv + row * width + (input.heads + head) * size;
  const float* value = key + cache.heads * size;
  rotate(key, input.cos + row * size / 2, input.sin + row * size / 2, size, 1.0f, turned);
  const std::int64_t place = (slot * cache.heads + head) * cache.columns + column;
  put_column<T>(turned, size, place, cache.keys, cache.key_scales);
  put_column<T>(value, size, place, cache.values, cache.value_scales);
}
