// The scales and minima of a tile of packed weights.
//
// Included by matmul_body.h and matmul_amx_body.h.

// Reads scales and minima of a tile from any kind of storage.
template <Scales scaling, bool minima>
struct Scaler {
  const Weights& weights;
  int64_t first;  // first group of this tile; half blocks are separate groups

  Scaler(const Weights& weights, int64_t tile, int64_t groups)
      : weights(weights), first(tile * groups) {}

  void read(int64_t group, Vec (&scale)[2], Vec (&minimum)[2]) const {
    constexpr int kinds = minima ? 2 : 1;
    for (int h = 0; h < 2; ++h) {
      const int64_t at = (first + group) * kinds * kTile + h * kHalf;
      if constexpr (scaling == Scales::half) {
        const auto* from = static_cast<const uint16_t*>(weights.scales) + at;
        scale[h] = load_half(from);
        if constexpr (minima) minimum[h] = load_half(from + kTile);
      } else if constexpr (scaling == Scales::halves) {
        const int64_t unit = (first + group) / (2 * kBlocksPerUnit) * kTile + h * kHalf;
        const auto* units = static_cast<const uint16_t*>(weights.scales) + unit;
        scale[h] = mul(load_signed(weights.steps + at), load_half(units));
      } else if constexpr (scaling == Scales::full) {
        const auto* from = static_cast<const float*>(weights.scales) + at;
        scale[h] = load(from);
        if constexpr (minima) minimum[h] = load(from + kTile);
      } else {
        const int64_t unit = (first + group) / kBlocksPerUnit * kinds * kTile + h * kHalf;
        const auto* units = static_cast<const uint16_t*>(weights.scales) + unit;
        scale[h] = mul(load_bytes(weights.steps + at), load_half(units));
        if constexpr (minima) {
          minimum[h] = mul(load_bytes(weights.steps + at + kTile), load_half(units + kTile));
        }
      }
    }
  }
};
