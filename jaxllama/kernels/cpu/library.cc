#include "library.h"

namespace jaxllama {
namespace {

Target*& first() {
  static Target* head = nullptr;
  return head;
}

}  // namespace

Target::Target(const char* name, void* handler) : name(name), handler(handler), next(first()) {
  first() = this;
}

}  // namespace jaxllama

// Returns the target after `place` (the first if null), or null; sets its name and handler.
JAXLLAMA_EXPORT void* jaxllama_next_target(void* place, const char** name, void** handler) {
  auto* target = place == nullptr ? jaxllama::first() : static_cast<jaxllama::Target*>(place)->next;
  if (target == nullptr) return nullptr;
  *name = target->name;
  *handler = target->handler;
  return target;
}
