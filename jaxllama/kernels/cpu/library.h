// The interface of the shared library to Python: C functions, and a list of XLA FFI targets.
//
// A file with handlers needs only JAXLLAMA_TARGET(name, Handler, binding): `library.py` reads the
// list once and registers every target.
#pragma once

#define JAXLLAMA_EXPORT extern "C" __attribute__((visibility("default")))

namespace jaxllama {

// One entry of the list; made by JAXLLAMA_TARGET before main, never removed.
struct Target {
  Target(const char* name, void* handler);
  const char* name;
  void* handler;
  Target* next;
};

}  // namespace jaxllama

// Makes `implementation` callable from JAX as "jaxllama_<name>". The binding may be left out if all
// arguments are buffers: their types define it.
#define JAXLLAMA_TARGET(name, ...)                                                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllama_##name, __VA_ARGS__);                                  \
  static ::jaxllama::Target target_##name("jaxllama_" #name,                                    \
                                          reinterpret_cast<void*>(&jaxllama_##name))
