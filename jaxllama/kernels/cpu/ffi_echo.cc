// The smallest handler: y = x, copied by all threads. Called once when the library is loaded, so
// that a library that XLA cannot call is refused at once and not inside a running program.
#include <cstdint>

#include "library.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace jaxllama {
namespace {

namespace ffi = xla::ffi;

ffi::Error echo(ffi::Buffer<ffi::S32> x, ffi::ResultBuffer<ffi::S32> y) {
  if (x.element_count() != y->element_count()) {
    return ffi::Error::InvalidArgument("echo: x and y differ in size");
  }
  const int32_t* from = x.typed_data();
  int32_t* to = y->typed_data();
  parallel_for(static_cast<int>(x.element_count()), [&](int each) { to[each] = from[each]; });
  return ffi::Error::Success();
}

}  // namespace

JAXLLAMA_TARGET(echo, echo,
                ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::S32>>());

}  // namespace jaxllama

// For tests: fills y[outer * inner] from nested parallel_for calls, three levels deep.
JAXLLAMA_EXPORT void jaxllama_nested(int outer, int inner, int32_t* y) {
  jaxllama::parallel_for(outer, [&](int row) {
    jaxllama::parallel_for(inner, [&](int column) {
      jaxllama::parallel_for(2, [&](int half) { y[row * inner + column] += half; });
    });
  });
}
